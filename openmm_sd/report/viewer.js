// A small viewer of a molecule that moves: balls and sticks on a plain canvas, nothing loaded.
// The page calls it with the element that holds it and what there is to show.
"use strict";

function showMolecule(holder, scene) {
  const canvas = holder.querySelector("canvas");
  const button = holder.querySelector("button");
  const slider = holder.querySelector("input");
  const label = holder.querySelector("output");
  const context = canvas.getContext("2d");
  const bytes = Uint8Array.from(atob(scene.coordinates), letter => letter.charCodeAt(0));
  const view16 = new DataView(bytes.buffer);
  const atoms = scene.elements.length;
  const count = scene.labels.length;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = { rotation: [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom: 1 };
  let rotation = start.rotation, zoom = start.zoom, frame = 0, timer = null, grip = null;
  let dirty = true, sprites = new Map();

  // Scaled integers, little-endian, of all frames one after the other.
  function position(which, atom, axis) {
    return view16.getInt16(2 * ((which * atoms + atom) * 3 + axis), true) * scene.unit;
  }

  let reach = 0.1;
  for (let k = 0; k < count * atoms; k++) {
    const f = Math.floor(k / atoms), a = k % atoms;
    reach = Math.max(reach, Math.hypot(position(f, a, 0), position(f, a, 1), position(f, a, 2)));
  }

  function colours(hex) {
    const parts = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
    const mix = (target, share) =>
      "rgb(" + parts.map(p => Math.round(p + (target - p) * share)).join(",") + ")";
    return { light: mix(255, 0.65), plain: mix(0, 0), edge: mix(0, 0.45) };
  }

  // A shaded ball is drawn once for each element and size.
  function ball(element, radius) {
    const key = element + " " + radius;
    if (!sprites.has(key)) {
      const made = document.createElement("canvas");
      made.width = made.height = 2 * radius + 2;
      const pen = made.getContext("2d"), middle = radius + 1;
      const tint = colours(scene.colours[element]);
      const shade = pen.createRadialGradient(
        middle - 0.35 * radius, middle - 0.4 * radius, 0.05 * radius, middle, middle, radius);
      shade.addColorStop(0, tint.light);
      shade.addColorStop(0.45, tint.plain);
      shade.addColorStop(1, tint.edge);
      pen.fillStyle = shade;
      pen.beginPath();
      pen.arc(middle, middle, radius, 0, 2 * Math.PI);
      pen.fill();
      sprites.set(key, made);
    }
    return sprites.get(key);
  }

  function stick(from, to, width, colour) {
    for (const [share, tint] of [[1, colour.edge], [0.62, colour.plain], [0.2, colour.light]]) {
      context.strokeStyle = tint;
      context.lineWidth = width * share;
      context.beginPath();
      context.moveTo(from[0], from[1]);
      context.lineTo(to[0], to[1]);
      context.stroke();
    }
  }

  function draw() {
    dirty = false;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      sprites = new Map();
    }
    context.clearRect(0, 0, width, height);
    const scale = 0.44 * Math.min(width, height) / reach * zoom;
    const spots = [];
    for (let atom = 0; atom < atoms; atom++) {
      const p = [0, 1, 2].map(axis => position(frame, atom, axis));
      const q = [0, 3, 6].map(row =>
        rotation[row] * p[0] + rotation[row + 1] * p[1] + rotation[row + 2] * p[2]);
      const near = 1 / (1 - 0.25 * q[2] / reach);
      spots.push([width / 2 + scale * near * q[0], height / 2 - scale * near * q[1], q[2], near]);
    }
    const things = spots.map((spot, atom) => ({ depth: spot[2], atom }));
    for (const [i, j] of scene.bonds) {
      things.push({ depth: (spots[i][2] + spots[j][2]) / 2 - 0.004, bond: [i, j] });
    }
    things.sort((one, other) => one.depth - other.depth);
    context.lineCap = "round";
    for (const thing of things) {
      if (thing.bond === undefined) {
        const [x, y, , near] = spots[thing.atom];
        const element = scene.elements[thing.atom];
        const radius = Math.max(2, Math.round(scale * near * scene.radii[element]));
        context.drawImage(ball(element, radius), Math.round(x - radius - 1),
          Math.round(y - radius - 1));
      } else {
        const [i, j] = thing.bond, a = spots[i], b = spots[j];
        const middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
        const thick = scale * (a[3] + b[3]) / 2 * scene.stick;
        stick(a, middle, thick, colours(scene.colours[scene.elements[i]]));
        stick(b, middle, thick, colours(scene.colours[scene.elements[j]]));
      }
    }
    label.textContent = "frame " + (frame + 1) + " of " + count + ": " + scene.labels[frame];
    slider.value = String(frame);
    slider.setAttribute("aria-valuetext", label.textContent);
  }

  function soon() {
    if (!dirty) {
      dirty = true;
      requestAnimationFrame(draw);
    }
  }

  function show(which) {
    frame = (which + count) % count;
    soon();
  }

  function play(on) {
    clearInterval(timer);
    timer = on && count > 1 ? setInterval(() => show(frame + 1), still ? 500 : 90) : null;
    button.textContent = timer === null ? "Play" : "Pause";
    button.setAttribute("aria-pressed", String(timer !== null));
  }

  function turn(dx, dy) {
    const [cx, sx, cy, sy] = [Math.cos(dy), Math.sin(dy), Math.cos(dx), Math.sin(dx)];
    const by = [cy, 0, sy, sx * sy, cx, -sx * cy, -cx * sy, sx, cx * cy];
    const result = [];
    for (let row = 0; row < 3; row++) {
      for (let column = 0; column < 3; column++) {
        result.push([0, 1, 2].reduce(
          (sum, k) => sum + by[3 * row + k] * rotation[3 * k + column], 0));
      }
    }
    rotation = result;
    soon();
  }

  function magnify(factor) {
    zoom = Math.min(8, Math.max(0.3, zoom * factor));
    soon();
  }

  button.addEventListener("click", () => play(timer === null));
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  canvas.addEventListener("pointerdown", event => {
    grip = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
    canvas.style.cursor = "grabbing";
    canvas.focus({ preventScroll: true });
  });
  canvas.addEventListener("pointermove", event => {
    if (grip !== null) {
      turn(0.01 * (event.clientX - grip[0]), 0.01 * (event.clientY - grip[1]));
      grip = [event.clientX, event.clientY];
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { grip = null; canvas.style.cursor = ""; });
  }
  // A page that is scrolled past must not zoom: only a viewer that was clicked or tabbed to does.
  canvas.addEventListener("wheel", event => {
    if (document.activeElement === canvas) {
      event.preventDefault();
      magnify(Math.exp(-0.0015 * event.deltaY));
    }
  }, { passive: false });
  const keys = {
    "ArrowLeft": () => turn(-0.12, 0), "ArrowRight": () => turn(0.12, 0),
    "ArrowUp": () => turn(0, -0.12), "ArrowDown": () => turn(0, 0.12),
    "+": () => magnify(1.15), "=": () => magnify(1.15), "-": () => magnify(1 / 1.15),
    " ": () => play(timer === null),
    ",": () => { play(false); show(frame - 1); }, ".": () => { play(false); show(frame + 1); },
    "Home": () => { rotation = start.rotation; zoom = start.zoom; soon(); },
  };
  canvas.addEventListener("keydown", event => {
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  addEventListener("resize", soon);
  addEventListener("beforeprint", draw);

  turn(0.35, 0.25);
  start.rotation = rotation;
  play(false);
  draw();
  // How much of the canvas holds something: told to whoever checks that it works.
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let filled = 0;
  for (let k = 3; k < pixels.length; k += 4) filled += pixels[k] > 0 ? 1 : 0;
  canvas.dataset.drawn = String(filled);
}
