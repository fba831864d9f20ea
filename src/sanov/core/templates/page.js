// Expressions are interpreted (ast), because the page's own policy forbids to evaluate text as code.
const OPTIONS = { mode: "vega-lite", ast: true, actions: false, defaultStyle: false,
                  tooltip: { theme: "custom", disableDefaultStyle: true } };

const specOf = panel => JSON.parse(panel.querySelector("script").textContent);

document.querySelectorAll(".panel").forEach(panel => {
  const chart = panel.querySelector(".chart");
  if (chart) vegaEmbed(chart, specOf(panel), { ...OPTIONS, renderer: "svg", config: CONFIG });
  panel.querySelector(".tools").addEventListener("click", event => {
    const form = event.target.dataset.form;
    if (form === "csv") save(panel, "csv", URL.createObjectURL(new Blob([csv(chart ? chartRows(specOf(panel)) : tableRows(panel, true))], { type: "text/csv" })));
    if (form === "png") (chart ? chartPicture(panel, chart) : tablePicture(panel)).then(address => save(panel, "png", address));
  });
});

function save(panel, suffix, address) {
  const link = document.createElement("a");
  link.href = address;
  link.download = panel.dataset.name.replace(/[^A-Za-z0-9]+/g, "-").toLowerCase() + "." + suffix;
  link.click();
}

// -- rows -------------------------------------------------------------------------------------------------------------

function csv(rows) {
  const quoted = cell => /[",\r\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell;
  return rows.map(row => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function tableRows(panel, exact) {
  return [...panel.querySelectorAll("tr")].map(row => [...row.cells].map(cell => exact ? cell.dataset.exact ?? cell.textContent : cell.textContent));
}

function chartRows(spec) {
  const sets = Object.values(spec.datasets ?? {});
  (function walk(tree) {
    if (Array.isArray(tree)) return tree.forEach(walk);
    if (tree === null || typeof tree !== "object") return;
    if (Array.isArray(tree.data?.values)) sets.push(tree.data.values);
    Object.entries(tree).forEach(([name, branch]) => { if (name !== "data" && name !== "datasets") walk(branch); });
  })(spec);
  const rows = sets.flat().map(row => row !== null && typeof row === "object" ? row : { data: row });
  const names = [...new Set(rows.flatMap(Object.keys))];
  const text = value => value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  return [names, ...rows.map(row => names.map(name => text(row[name])))];
}

// -- pictures: always in light colours, for paper and slides ----------------------------------------------------------

function light(name) {
  const probe = document.createElement("div");
  probe.className = "light";
  document.body.append(probe);
  const value = getComputedStyle(probe).getPropertyValue(name).trim();
  probe.remove();
  return value;
}

const inLight = tree => JSON.parse(JSON.stringify(tree).replace(/var\((--\w+)\)/g, (_, name) => light(name)));

async function chartPicture(panel, chart) {
  const spec = specOf(panel), place = document.createElement("div");
  if (spec.width === "container") spec.width = chart.clientWidth - 90;
  const config = { ...inLight(CONFIG), background: light("--ground") };
  const drawn = await vegaEmbed(place, inLight(spec), { ...OPTIONS, renderer: "canvas", config });
  const address = await drawn.view.toImageURL("png", 2);
  drawn.finalize();
  return address;
}

async function tablePicture(panel) {
  const rows = tableRows(panel, false), scale = 2, line = 26, gap = 24, margin = 16;
  const right = [...panel.querySelectorAll("th")].map(cell => cell.classList.contains("n"));
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  const face = weight => `${weight} 14px ${CONFIG.font}`;
  pen.font = face(600);
  const widths = rows[0].map((_, j) => Math.ceil(Math.max(...rows.map(row => pen.measureText(row[j]).width))));
  canvas.width = scale * (2 * margin + widths.reduce((sum, width) => sum + width + gap, -gap));
  canvas.height = scale * (2 * margin + line * rows.length);
  pen.scale(scale, scale);
  pen.fillStyle = light("--ground");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = light("--ink");
  pen.textBaseline = "middle";
  rows.forEach((row, i) => {
    pen.font = face(i ? 400 : 600);
    let x = margin;
    row.forEach((cell, j) => {
      pen.textAlign = right[j] ? "right" : "left";
      pen.fillText(cell, right[j] ? x + widths[j] : x, margin + line * (i + 0.5));
      x += widths[j] + gap;
    });
  });
  const width = canvas.width / scale - 2 * margin;
  [[0, 1.5], [line, 1], [line * rows.length, 1.5]].forEach(([y, height]) => pen.fillRect(margin, margin + y, width, height));
  return canvas.toDataURL("image/png");
}
