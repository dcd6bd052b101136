// What the theme leaves out for those who use a keyboard or a screen reader; `nox -s site` checks it with axe-core.

document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

// A list inside the table of contents is not a landmark.
for (const list of document.querySelectorAll(".md-nav--secondary .md-nav")) {
  list.role = "none";
  list.removeAttribute("aria-label");
}

// Markdown has no tables whose corner is empty.
for (const head of document.querySelectorAll("article th:empty")) head.replaceWith(document.createElement("td"));

// What can be scrolled has to be reachable with Tab.
const reachable = (node) => {
  if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
  else node.removeAttribute("tabindex");
};
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => reachable(target)));

// The theme makes the buttons of a block of code, and the box around a table, when the page is open.
const mend = () => {
  for (const node of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    reachable(node);
    resized.observe(node);
  }
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.role = "none"; // landmarks without a name
};
new MutationObserver(mend).observe(document.querySelector("article"), { childList: true, subtree: true });
mend();
