"use strict";
// The structure of a workflow's page. What happened is told by attributes of <html>, as in report.js.
(() => {
  const page = document.documentElement;
  const structures = JSON.parse(document.getElementById("structures-data").textContent);
  const scene = document.getElementById("scene");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const sum = (...vectors) => vectors.reduce((a, b) => a.map((x, k) => x + b[k]), [0, 0, 0]);
  const point = ([x, y, z]) => ({ x, y, z });

  let viewer = null;
  try {
    viewer = $3Dmol.createViewer(scene, { antialias: true });
  } catch (error) {
    viewer = null;
  }

  function drawCell(cell) {
    for (let axis = 0; axis < 3; axis++) {
      const [u, v] = [cell[(axis + 1) % 3], cell[(axis + 2) % 3]];
      for (const start of [[0, 0, 0], u, v, sum(u, v)]) {
        viewer.addCylinder({ start: point(start), end: point(sum(start, cell[axis])), radius: 0.035, color: "#7d8894" });
      }
    }
  }

  function show(index, recentre) {
    const structure = structures[index];
    document.getElementById("about").textContent = structure.label;
    if (!viewer) return;
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.setBackgroundColor(getComputedStyle(page).getPropertyValue("--scene").trim(), 1.0);
    const lines = structure.symbols.map((symbol, i) => `${symbol} ${structure.positions[i].join(" ")}`);
    const model = viewer.addModel(`${lines.length}\n\n${lines.join("\n")}\n`, "xyz");
    const atoms = model.selectedAtoms({});
    const packed = atoms.reduce((bonds, atom) => bonds + atom.bonds.length, 0) > 4.5 * atoms.length;
    for (const atom of atoms) {
      const color = $3Dmol.elementColors.Jmol[atom.elem] ?? 0xff1493;
      const radius = 0.24 * ($3Dmol.GLModel.vdwRadii[atom.elem] ?? 1.7);
      atom.style = packed ? { sphere: { radius, color } } : { sphere: { radius, color }, stick: { radius: 0.07, color } };
    }
    if (structure.cell) drawCell(structure.cell);
    if (recentre) {
      viewer.zoomTo();
      viewer.rotate(12, "x");
      viewer.rotate(24, "y");
    }
    viewer.render();
  }

  if (!viewer) {
    scene.textContent = "This browser offers no WebGL, so the structure cannot be drawn.";
    scene.style.padding = "20px";
  }
  page.dataset.scene = viewer ? "drawn" : "unavailable";
  document.getElementById("image")?.addEventListener("input", (event) => show(Number(event.target.value), false));
  dark.addEventListener("change", () => show(Number(document.getElementById("image")?.value ?? 0), false));
  show(0, true);
  page.dataset.report = "ready";
})();
