// What scrolls sideways on a narrow screen must be reachable by keyboard.
window.addEventListener("load", () => {
  for (const box of document.querySelectorAll("pre, .table-wrapper, mjx-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
