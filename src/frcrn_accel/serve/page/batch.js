// The list of several files.

import { element, show } from "./elements.js";

/** Shows the state of each file; those that are done can be listened to. */
export class Batch {
  #list = element("batch");
  #rows = [];

  /**
   * Start a list; a single file needs none.
   *
   * @param {File[]} files
   * @param {(index: number) => void} onChoose Called with the file to listen to.
   */
  start(files, onChoose) {
    this.#rows = files.map((file, index) => {
      const [row, name, state, button] = ["li", "span", "span", "button"].map((tag) => document.createElement(tag));
      name.textContent = file.name;
      name.className = "name";
      state.textContent = "waiting";
      state.className = "state";
      button.type = "button";
      button.textContent = "Listen";
      button.setAttribute("aria-label", `Listen to ${file.name}`);
      button.addEventListener("click", () => onChoose(index));
      show(button, false);
      row.append(name, state, button);
      return { row, state, button };
    });
    this.#list.replaceChildren(...this.#rows.map(({ row }) => row));
    show(element("batch-box"), files.length > 1);
    this.showArchive(false);
  }

  /** Show the state of a file. */
  set(index, words, { isDone = false, isError = false } = {}) {
    const { state, button } = this.#rows[index];
    state.textContent = words;
    state.classList.toggle("error", isError);
    show(button, isDone);
  }

  /** Mark the file that is shown. */
  select(index) {
    this.#rows.forEach(({ row }, each) => {
      if (each === index) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
  }

  /** Offer the archive of all results. */
  showArchive(isShown) {
    show(element("archive"), isShown);
  }
}
