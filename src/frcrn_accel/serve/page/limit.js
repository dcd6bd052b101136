// The slider for the attenuation limit.

import { element } from "./elements.js";

const MAX_DB = 40; // one position further means no limit

/**
 * Set up the slider.
 *
 * @param {string} id Of the slider; its text is in `ID-text`.
 * @param {(limitDb: number|null) => void} onChange Called with the new value.
 */
export function limitSlider(id, onChange = () => {}) {
  const slider = element(id);
  const text = element(`${id}-text`);
  let isTouched = false; // until then the server's own default applies, unrounded
  const words = () => (Number(slider.value) > MAX_DB ? "no limit" : `at most ${slider.value} dB`);
  const write = () => {
    text.textContent = words();
    slider.setAttribute("aria-valuetext", words());
  };
  const value = () => {
    if (!isTouched) return null;
    return Number(slider.value) > MAX_DB ? Infinity : Number(slider.value);
  };
  slider.addEventListener("input", () => {
    isTouched = true;
    write();
    onChange(value());
  });
  write();
  return {
    /** @returns {number|null} dB; Infinity for no limit, null for the server's default. */
    value,
    /** Show the server's default. */
    setDefault(limitDb) {
      if (isTouched) return;
      slider.value = limitDb === null ? MAX_DB + 1 : Math.min(MAX_DB, Math.max(1, Math.round(limitDb)));
      write();
    },
  };
}
