// Save a result.

const KEPT_MS = 60_000; // until the browser has surely read it

/**
 * Save a result under the name of the original.
 *
 * @param {{blob: Blob, header: (name: string) => string|null}} answer The server's answer.
 * @param {string} name Name of the original.
 */
export function save({ blob, header }, name) {
  const suffix = /filename="[^"]*\.(\w+)"/.exec(header("Content-Disposition"))[1];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/\.[^.]*$/, "")}.denoised.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}
