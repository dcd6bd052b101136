// The dialog that asks for a token.

import { element } from "./elements.js";

/**
 * Ask for a token.
 *
 * @param {string} reason Why the previous token was rejected; "" for the first one.
 * @returns {Promise<string|null>} null if the user cancels.
 */
export function askForToken(reason) {
  const dialog = element("ask-token");
  const field = element("token");
  const text = element("token-text");
  if (reason) text.textContent = reason;
  field.value = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    let given = null;
    element("token-form").onsubmit = (event) => {
      event.preventDefault();
      given = field.value.trim();
      if (given) dialog.close();
    };
    element("no-token").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve(given || null);
    };
  });
}
