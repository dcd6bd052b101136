// The slider for the attenuation limit.

import { element, followTouch } from "./elements.js";

const MAX_DB = 40; // one position further means no limit

/**
 * Set up the slider.
 *
 * @param {string} id Of the slider; its text is in `ID-text`.
 * @param {(limitDb: number) => void} onChange Called with the new value.
 */
export function limitSlider(id, onChange = () => {}) {
  const slider = element(id);
  const text = element(`${id}-text`);
  let usualDb = Infinity; // the default of the engine, unrounded
  const words = () => (Number(slider.value) > MAX_DB ? "no limit" : `at most ${slider.value} dB`);
  const write = () => {
    text.textContent = words();
    slider.setAttribute("aria-valuetext", words());
  };
  const value = () => {
    if (!isTouched()) return usualDb;
    return Number(slider.value) > MAX_DB ? Infinity : Number(slider.value);
  };
  const isTouched = followTouch(slider, () => {
    write();
    onChange(value());
  });
  write();
  return {
    /** @returns {number} dB; Infinity for no limit. */
    value,
    /** Show the default of the engine. @param {number|null} limitDb */
    setDefault(limitDb) {
      usualDb = limitDb ?? Infinity;
      if (isTouched()) return;
      slider.value = limitDb === null ? MAX_DB + 1 : Math.min(MAX_DB, Math.max(1, Math.round(limitDb)));
      write();
    },
  };
}
