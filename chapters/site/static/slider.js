// The slider of "Watch it come back": every moment is in the page, one of them is shown.
(function () {
  "use strict";
  const samples = document.getElementById("samples");
  if (!samples) return;
  const at = samples.dataset.at.split(" ");
  const count = document.getElementById("count");
  const spoken = document.getElementById("spoken");
  const layers = Array.from(document.querySelectorAll(".layer[data-step]"));
  const meters = Array.from(document.querySelectorAll(".meter"));
  let later = 0;

  // A method that is not attacked has one value, which stays.
  const percent = (meter, step) => {
    const values = meter.dataset.values.split(" ");
    return values[Math.min(step, values.length - 1)];
  };

  function show(step) {
    for (const layer of layers) layer.hidden = Number(layer.dataset.step) !== step;
    for (const meter of meters) {
      meter.querySelector(".fill").style.setProperty("--x", percent(meter, step) / 100);
      meter.querySelector("output").textContent = percent(meter, step) + " %";
    }
    count.textContent = at[step];
    samples.setAttribute("aria-valuetext", at[step] + " samples");
    // Spoken once the slider rests: a reader's ear cannot follow each step.
    clearTimeout(later);
    later = setTimeout(() => {
      const parts = meters.map((m) => m.dataset.method + " " + percent(m, step) + " %");
      spoken.textContent = "CHAIR_s after " + at[step] + " samples: " + parts.join(", ");
    }, 700);
  }

  samples.addEventListener("input", () => show(Number(samples.value)));
  document.getElementById("numbers").addEventListener("change", (event) => {
    document.querySelector(".relapse").classList.toggle("with-numbers", event.target.checked);
  });
  show(Number(samples.value)); // a reload may keep the slider where it was
})();
