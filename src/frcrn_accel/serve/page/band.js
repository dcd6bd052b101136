// The checkbox for the band above 8 kHz, which the model does not process.

import { element, followTouch } from "./elements.js";

/**
 * Set up the checkbox.
 *
 * @param {string} id Of the checkbox.
 * @param {() => void} onChange Called when the user changes it.
 */
export function bandBox(id, onChange = () => {}) {
  const box = element(id);
  const isTouched = followTouch(box, onChange);
  return {
    /** @returns {"follow"|"drop"|null} Null for the default of the engine. */
    value: () => (isTouched() ? (box.checked ? "follow" : "drop") : null),
    /** Show the default of the engine. @param {"follow"|"drop"} mode */
    setDefault(mode) {
      if (!isTouched()) box.checked = mode === "follow";
    },
    /** Let the user change it, or not. */
    enable(isEnabled) {
      box.disabled = !isEnabled;
    },
  };
}
