// Save results.

const KEPT_MS = 60_000; // until the browser has surely read it

/** The name of a result. @param {string} name That of the original. @param {string} suffix */
export const resultName = (name, suffix) => `${name.replace(/\.[^.]*$/, "")}.denoised.${suffix}`;

/** Save a blob under a name. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}
