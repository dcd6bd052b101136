// The slider for the attenuation limit.

import { element } from "./elements.js";

const MOST_DB = 40; // the slider's last place, one further, is for no limit

/**
 * A slider.
 *
 * @param {string} id Of the slider; its text is at `ID-text`.
 * @param {(limitDb: number|null) => void} onChange Called with the new value.
 */
export function limitSlider(id, onChange = () => {}) {
  const slider = element(id);
  const text = element(`${id}-text`);
  let isTouched = false; // what nobody has touched is the server's own default, to the digit
  const words = () => (Number(slider.value) > MOST_DB ? "all of it" : `at most ${slider.value} dB`);
  const write = () => {
    text.textContent = words();
    slider.setAttribute("aria-valuetext", words());
  };
  const value = () => {
    if (!isTouched) return null;
    return Number(slider.value) > MOST_DB ? Infinity : Number(slider.value);
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
      slider.value = limitDb === null ? MOST_DB + 1 : Math.min(MOST_DB, Math.max(1, Math.round(limitDb)));
      write();
    },
  };
}
