"use strict";
// What this page did, for tests and for the curious: attributes of <html>.
//   data-report: "loading", then "ready"; data-errors: number of script errors and of attempts to fetch something; data-scene: "drawn", "blank" or "unavailable"
(() => {
  const page = document.documentElement;
  const data = JSON.parse(document.getElementById("structures-data").textContent);
  const element = (id) => document.getElementById(id);

  // --- light and dark -------------------------------------------------------------------------------------------
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (page.dataset.theme ? page.dataset.theme === "dark" : system.matches);
  element("theme").addEventListener("click", () => {
    page.dataset.theme = dark() ? "light" : "dark";
    paintBackground();
  });
  system.addEventListener("change", () => paintBackground());

  // --- worst structures -----------------------------------------------------------------------------------------
  let viewer = null;
  let current = null;

  const digits = (x) => (x === null ? "–" : Number(x.toPrecision(3)).toString());
  const NAMES = {
    forces: ["forces RMSE", "meV/Å"],
    energy: ["energy error", "meV/atom"],
    stress: ["stress RMSE", "meV/Å³"],
  };
  const tell = (structure, key) => `${NAMES[key][0]} ${digits(structure.errors[key])} ${NAMES[key][1]}`;

  function paintBackground() {
    if (!viewer) return;
    const color = getComputedStyle(page).getPropertyValue("--scene").trim();
    viewer.setBackgroundColor(color, 1.0);
    viewer.render();
  }

  function fillList() {
    const key = element("rank").value;
    const size = (s) => Math.abs(s.errors[key] ?? 0);
    const ranked = data.structures.filter((s) => s.errors[key] !== null).sort((a, b) => size(b) - size(a)).slice(0, data.shown);
    const list = element("list");
    list.replaceChildren();
    for (const structure of ranked) {
      const button = document.createElement("button");
      const others = Object.keys(NAMES).filter((k) => k !== key && structure.errors[k] !== null);
      const first = document.createElement("b");
      first.textContent = tell(structure, key);
      const rest = document.createElement("small");
      rest.textContent = [
        structure.label,
        structure.config_type === null ? structure.formula : `${structure.formula}, ${structure.config_type}`,
        ...others.map((k) => tell(structure, k)),
      ].join(" · ");
      button.append(first, rest);
      button.addEventListener("click", () => show(structure, true));
      structure.button = button;
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    }
    if (ranked.length) show(ranked[0], true);
  }

  const length = (v) => Math.hypot(v[0], v[1], v[2]);
  const point = (v) => ({ x: v[0], y: v[1], z: v[2] });
  const plus = (a, b, factor = 1) => [a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2]];
  const minus = (a, b) => plus(a, b, -1);

  function drawCell(cell) {
    for (let axis = 0; axis < 3; axis++) {
      const [u, v] = [cell[(axis + 1) % 3], cell[(axis + 2) % 3]];
      for (const start of [[0, 0, 0], u, v, plus(u, v)]) {
        const end = plus(start, cell[axis]);
        viewer.addCylinder({ start: point(start), end: point(end), radius: 0.035, color: dark() ? "#8b97a4" : "#67727e" });
      }
    }
  }

  function heat(fraction) {
    // grey to yellow to red, readable on either background
    const stops = [[150, 160, 172], [242, 201, 55], [214, 59, 47]];
    const place = Math.min(Math.max(fraction, 0), 1) * 2;
    const i = Math.min(Math.floor(place), 1);
    const mixed = stops[i].map((c, k) => Math.round(c + (place - i) * (stops[i + 1][k] - c)));
    return (mixed[0] << 16) | (mixed[1] << 8) | mixed[2];
  }

  function show(structure, recentre) {
    current = structure;
    for (const s of data.structures) s.button?.setAttribute("aria-current", String(s === structure));
    const errors = structure.predicted && structure.reference
      ? structure.predicted.map((f, i) => minus(f, structure.reference[i])) : null;
    const sizes = errors ? errors.map(length) : null;
    const largest = sizes ? Math.max(...sizes, 1e-12) : 1;
    element("about").textContent =
      `${structure.label}: ${structure.formula}, ${structure.symbols.length} atoms` +
      (sizes ? `; largest force error ${digits(1000 * largest)} meV/Å on atom ${sizes.indexOf(Math.max(...sizes))}` : "; no reference forces");
    if (!viewer) return;

    viewer.removeAllModels();
    viewer.removeAllShapes();
    const lines = structure.symbols.map((symbol, i) => `${symbol} ${structure.positions[i].join(" ")}`);
    const model = viewer.addModel(`${lines.length}\n\n${lines.join("\n")}\n`, "xyz");
    const byError = element("color").value === "error" && sizes;
    const scaled = element("sized").checked && sizes;
    const atoms = model.selectedAtoms({});
    // Between close-packed atoms bonds are a thicket that says nothing.
    const packed = atoms.reduce((sum, atom) => sum + atom.bonds.length, 0) > 4.5 * atoms.length;
    atoms.forEach((atom, i) => {
      const color = byError ? heat(sizes[i] / largest) : ($3Dmol.elementColors.Jmol[atom.elem] ?? 0xff1493);
      const radius = scaled ? 0.12 + 0.5 * (sizes[i] / largest) : 0.3 * ($3Dmol.GLModel.vdwRadii[atom.elem] ?? 1.7) * 0.8;
      atom.style = packed ? { sphere: { radius, color } } : { sphere: { radius, color }, stick: { radius: 0.07, color } };
    });
    viewer.setHoverable({}, true, (atom) => {
      const i = atom.index;
      element("about").textContent = `atom ${i}, ${structure.symbols[i]}` + (sizes
        ? `: force error ${digits(1000 * sizes[i])} meV/Å; reference ${digits(1000 * length(structure.reference[i]))}, ` +
          `predicted ${digits(1000 * length(structure.predicted[i]))} meV/Å` : "");
    }, () => {});
    if (structure.cell) drawCell(structure.cell);

    const arrows = { error: errors, reference: structure.reference, predicted: structure.predicted }[element("arrows").value];
    element("scale").textContent = "";
    if (arrows) {
      const longest = Math.max(...arrows.map(length), 1e-12);
      element("scale").textContent = `longest arrow: ${digits(1000 * longest)} meV/Å`;
      arrows.forEach((force, i) => {
        if (length(force) < 0.04 * longest) return;
        const start = structure.positions[i];
        const end = plus(start, force, 1.8 / longest);
        viewer.addArrow({ start: point(start), end: point(end), radius: 0.06, radiusRatio: 2.2, mid: 0.75, color: dark() ? "#b9a2ff" : "#6b35e0" });
      });
    }
    if (recentre) {
      viewer.zoomTo();
      viewer.zoom(structure.cell || structure.symbols.length > 40 ? 0.95 : 1.4);
    }
    viewer.render();
  }

  function sceneState() {
    // A canvas of one colour is a scene that was not drawn.
    const canvas = element("scene").querySelector("canvas");
    if (!canvas || !canvas.width || !canvas.height) return "blank";
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height];
    const context = copy.getContext("2d");
    context.drawImage(canvas, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
    let different = 0;
    for (const pixel of pixels) if (pixel !== pixels[0]) different++;
    return different > 200 ? "drawn" : "blank";
  }

  function startViewer() {
    try {
      viewer = $3Dmol.createViewer(element("scene"), { antialias: true });
    } catch (error) {
      viewer = null;
    }
    if (!viewer) {
      element("scene").textContent = "This browser offers no WebGL, so the structures cannot be drawn; their errors are in the list.";
      element("scene").style.padding = "20px";
      page.dataset.scene = "unavailable";
    }
    for (const id of ["color", "sized", "arrows"]) element(id).addEventListener("change", () => show(current, false));
    element("rank").addEventListener("change", fillList);
    paintBackground();
    fillList();
    if (viewer) {
      // Askew, so that crystals do not hide their rows of atoms behind one another.
      viewer.rotate(12, "x");
      viewer.rotate(24, "y");
      page.dataset.scene = sceneState();
    }
  }

  if (data.structures.length) startViewer();
  page.dataset.report = "ready";
})();
