"use strict";
// The theme: the system's own until the reader chooses another; the choice is kept where the browser allows it.
const root = document.documentElement;
const button = document.getElementById("theme");
const system = window.matchMedia("(prefers-color-scheme: dark)");
const kept = {
  get() { try { return localStorage.getItem("report-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("report-theme", value); } catch { /* a file without storage */ } },
};
function showTheme() {
  const dark = (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  button.setAttribute("aria-pressed", String(dark));
  return dark;
}
const chosen = kept.get();
if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
showTheme();
system.addEventListener("change", showTheme);
button.addEventListener("click", () => {
  root.dataset.theme = showTheme() ? "light" : "dark";
  kept.set(root.dataset.theme);
  showTheme();
});

// The slider: one frame of every pair at a time.
const slider = document.getElementById("frame");
if (slider) {
  const labels = JSON.parse(slider.dataset.labels);
  const output = document.getElementById("frame-label");
  const frames = [...document.querySelectorAll(".frame")];
  const show = () => {
    const at = Number(slider.value);
    for (const frame of frames) frame.hidden = Number(frame.dataset.frame) !== at;
    output.textContent = labels[at];
    slider.setAttribute("aria-valuetext", labels[at]);
  };
  slider.addEventListener("input", show);
  show(); // a browser may restore where the slider stood
}
