// The page: buttons, bars and the loop that trains.
"use strict";

const $ = (id) => document.getElementById(id);
const FRAME = 9; // milliseconds of training between two pictures
// A lesson is over when the network is sure of the digit, and not before a few steps: one for each picture.
const LESSON = { least: 10, most: 150, sure: 0.9 };

async function main() {
  const model = await Model.load();
  const bars = makeClasses((label) => teach(label));
  const loss = new Plot($("loss-plot"), {
    ticks: [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1],
    scale: (value) => (Math.log10(Math.max(value, 1e-9)) + 5.5) / 6,
    label: short,
    raw: true,
  });
  const accuracy = new Plot($("accuracy-plot"), {
    ticks: [0, 0.25, 0.5, 0.75, 1],
    scale: (value) => value,
    label: (value) => `${100 * value}%`,
    second: true,
  });
  const drawing = new Drawing($("pad"), seen);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawing.paint();
    preview(current);
    showMistakes();
  });
  let [current, running, lesson, tested, milliseconds, worst] = [null, false, null, -1, null, []];

  $("module-size").textContent = Math.round((wasmBytes() / 1024) * 10) / 10;
  $("held-out").textContent = model.heldOut.length;
  $("training-count").textContent = model.training.length;

  function rate() {
    return 10 ** Number($("rate").value);
  }

  function seen(image) {
    current = image;
    preview(image);
    answer();
  }

  function preview(image) {
    $("hint").hidden = image !== null;
    const context = $("seen").getContext("2d");
    context.clearRect(0, 0, 8, 8);
    if (image) paintPixels(context, image, 1, getComputedStyle(document.body).color);
  }

  function answer() {
    const probabilities = current ? model.classify([current])[0] : new Array(CLASSES).fill(0);
    bars.forEach(({ column, bar, output }, i) => {
      bar.style.transform = `scaleY(${probabilities[i].toFixed(4)})`;
      output.textContent = current ? `${Math.round(100 * probabilities[i])}%` : "";
      column.classList.toggle("best", current !== null && i === best(probabilities));
    });
    const said = current ? String(best(probabilities)) : "–";
    $("digit").textContent = said;
    if (!current) say("Nothing drawn yet.");
    else if (!lesson) say(`${Math.round(100 * Math.max(...probabilities))}% sure that this is a ${said}.`);
    return probabilities;
  }

  function say(text) {
    if ($("verdict").textContent !== text) $("verdict").textContent = text;
  }

  function teach(label) {
    if (!current) return say("Draw a digit first, or press “Show a test digit”.");
    lesson = { image: Float32Array.from(current), label, taken: 0 };
    model.yours.push({ image: lesson.image, label });
    $("yours").textContent = model.yours.length;
    loss.note(model.count);
    wake();
  }

  function study() {
    train(lesson);
    lesson.taken += 1;
    const { label, taken } = lesson;
    const sure = model.classify([lesson.image])[0][label];
    say(`Learning that this is a ${label} …`);
    if (taken < LESSON.least || (sure < LESSON.sure && taken < LESSON.most)) return;
    lesson = null;
    test();
    answer();
    say(`After ${taken} steps it is ${Math.round(100 * sure)}% sure that this is a ${label}.`);
  }

  function train(about = null) {
    const before = performance.now();
    const value = model.train(rate(), about);
    const took = performance.now() - before;
    milliseconds = milliseconds === null ? took : milliseconds + 0.02 * (took - milliseconds);
    loss.add(model.count, value);
    return value;
  }

  function test() {
    const said = model.test();
    const right = said.filter((digit) => digit.answer === digit.label).length / said.length;
    tested = model.count;
    accuracy.add(model.count, right);
    accuracy.draw();
    $("accuracy").textContent = `${(100 * right).toFixed(1)}%`;
    worst = said.filter((digit) => digit.answer !== digit.label).sort((a, b) => b.sure - a.sure).slice(0, 8);
    showMistakes();
  }

  function showMistakes() {
    $("no-mistakes").hidden = model.count > 0 && worst.length > 0;
    $("no-mistakes").textContent = model.count ? "None: all are right." : "Train it first.";
    $("mistakes").replaceChildren(
      ...(model.count ? worst : []).map((digit) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 8;
        paintPixels(canvas.getContext("2d"), digit.image, 1, getComputedStyle(document.body).color);
        button.type = "button";
        button.setAttribute("aria-label", `A ${digit.label} that it takes for a ${digit.answer}: show it above`);
        button.append(canvas);
        button.addEventListener("click", () => drawing.show(digit.image));
        const says = document.createElement("b");
        says.textContent = digit.answer;
        const text = document.createElement("span");
        text.append(says, `, is ${digit.label}`);
        item.append(button, text);
        return item;
      }),
    );
  }

  let awake = false;
  function wake() {
    if (!awake) requestAnimationFrame(frame);
    awake = true;
  }

  function frame() {
    const start = performance.now();
    if (lesson) study();
    while (running && !lesson && performance.now() - start < FRAME) {
      train();
      if (model.count - tested >= 20) test();
    }
    if (current && (lesson || running)) answer();
    loss.draw();
    if (loss.last) $("loss").textContent = short(loss.last[1]);
    $("steps").textContent = model.count;
    $("time").textContent = milliseconds === null ? "–" : milliseconds.toFixed(2);
    awake = running || lesson !== null;
    if (awake) requestAnimationFrame(frame);
  }

  function toggle() {
    running = !running;
    $("toggle").textContent = running ? "Pause" : model.count ? "Go on training" : "Start training";
    $("toggle").setAttribute("aria-pressed", String(running));
    if (running) wake();
    else test();
  }

  $("toggle").addEventListener("click", toggle);
  $("clear").addEventListener("click", () => drawing.clear());
  $("sample").addEventListener("click", () => {
    drawing.show(model.heldOut[Math.floor(Math.random() * model.heldOut.length)].image);
  });
  $("rate").addEventListener("input", () => ($("rate-value").textContent = rate().toPrecision(2)));
  $("rate-value").textContent = rate().toPrecision(2);
  $("reset").addEventListener("click", () => {
    if (running) toggle();
    model.reset();
    model.yours = [];
    [lesson, milliseconds] = [null, null];
    for (const plot of [loss, accuracy]) plot.clear();
    $("yours").textContent = $("steps").textContent = "0";
    $("loss").textContent = $("time").textContent = "–";
    $("toggle").textContent = "Start training";
    test();
    answer();
  });
  document.addEventListener("keydown", (event) => {
    if (/^[0-9]$/.test(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) teach(Number(event.key));
  });

  test();
  document.body.dataset.ready = "true";
}

/** A number in two digits: `0.012`, `3.4e-5`. */
function short(value) {
  if (value === 0 || value >= 9.5e-4) return String(Number(value.toPrecision(2)));
  return value.toExponential(1).replace(".0e", "e");
}

/** A bar, a number and a button for each class. */
function makeClasses(pressed) {
  return Array.from({ length: CLASSES }, (_, label) => {
    const column = document.createElement("div");
    column.className = "class";
    const tube = document.createElement("div");
    tube.className = "tube";
    const bar = document.createElement("span");
    tube.append(bar);
    const output = document.createElement("output");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.setAttribute("aria-label", `It is a ${label}`);
    button.addEventListener("click", () => pressed(label));
    column.append(tube, output, button);
    $("classes").append(column);
    return { column, bar, output };
  });
}

/** Bytes of the training step's .wasm. */
function wasmBytes() {
  return train.size;
}

main().catch((error) => {
  $("fault").hidden = false;
  $("fault").textContent = `This page needs a browser with WebAssembly and SIMD (any since 2021 or so). ${error.message}`;
  console.error(error);
});
