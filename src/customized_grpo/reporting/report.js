"use strict";
// The slider shows one frame of every pair at a time.
const slider = document.getElementById("frame");
if (slider) {
  const labels = JSON.parse(slider.dataset.labels);
  const show = () => {
    for (const frame of document.querySelectorAll(".frame")) frame.hidden = frame.dataset.frame !== slider.value;
    document.getElementById("frame-label").textContent = labels[slider.value];
    slider.setAttribute("aria-valuetext", labels[slider.value]);
  };
  slider.addEventListener("input", show);
  show(); // a browser may restore the slider's position
}
