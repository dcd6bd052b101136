// Helpers for the elements of the page.

export const element = (id) => document.getElementById(id);

export const show = (node, isShown) => {
  node.hidden = !isShown;
};

/**
 * Follow whether the user has changed a control; until then, the default of the engine applies.
 *
 * @param {HTMLInputElement} control
 * @param {() => void} onChange Called at each change.
 * @returns {() => boolean}
 */
export function followTouch(control, onChange) {
  let isTouched = false;
  control.addEventListener("input", () => {
    isTouched = true;
    onChange();
  });
  return () => isTouched;
}

/** Show an error, or hide it (null). */
export function showProblem(node, problem) {
  show(node, problem !== null);
  node.textContent = problem === null ? "" : problem.message;
  if (problem !== null && problem.title === undefined) console.error(problem); // not a `Problem`: a bug
}

/** Announce something to screen readers. */
export function say(text) {
  element("status").textContent = text;
}

/** Show pairs of name and value; those without a value are left out. */
export function showFacts(list, facts) {
  const entries = facts.filter(([, value]) => value);
  while (list.children.length > entries.length) list.lastChild.remove();
  while (list.children.length < entries.length) {
    const entry = document.createElement("div");
    entry.append(document.createElement("dt"), document.createElement("dd"));
    list.append(entry);
  }
  entries.forEach(([name, value], index) => {
    const [term, text] = list.children[index].children;
    if (term.textContent !== name) term.textContent = name;
    if (text.textContent !== value) text.textContent = value;
  });
}

/** Show a level as a bar, from -60 to 0 dB. */
export function showLevel(bar, levelDb) {
  const shown = Math.min(0, Math.max(-60, levelDb));
  bar.setAttribute("aria-valuenow", shown.toFixed(0));
  bar.firstElementChild.style.transform = `scaleX(${(shown + 60) / 60})`;
}

/** Format seconds as minutes and seconds, e.g. `1:02.3`. */
export function minutes(seconds) {
  const tenths = Math.round(10 * seconds);
  const rest = (tenths % 600) / 10;
  return `${Math.floor(tenths / 600)}:${rest < 10 ? "0" : ""}${rest.toFixed(1)}`;
}

/** Read and set a group of radio buttons; setting calls `onChange`, as a click does. */
export function radioGroup(name, onChange) {
  const buttons = [...document.querySelectorAll(`input[name="${name}"]`)];
  for (const button of buttons) button.addEventListener("change", () => onChange(button.value));
  const value = () => buttons.find((button) => button.checked).value;
  const choose = (wanted) => {
    if (wanted === value()) return;
    buttons.find((button) => button.value === wanted).checked = true;
    onChange(wanted);
  };
  return { choose, value, other: () => choose(value() === "before" ? "after" : "before") };
}
