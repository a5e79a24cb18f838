"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

  /* light and dark */
  const root = document.documentElement;
  const themeButton = one("[data-theme-button]");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  nameTheme();

  /* where we are */
  const links = all(".rail a");
  const markSection = () => {
    const line = innerHeight * 0.3;
    const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 4;
    const passed = links.filter((link) => one(link.hash).getBoundingClientRect().top <= line);
    const current = atEnd ? links.at(-1) : passed.at(-1) || links[0];
    links.forEach((link) => (link === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  };
  addEventListener("scroll", markSection, { passive: true });
  markSection();

  /* sortable tables: numbers by data-sort, words by text; large first for numbers */
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.sort);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  const sortBy = (table, header, column) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const isNumber = header.classList.contains("num");
    const descending = header.ariaSort ? header.ariaSort !== "descending" : isNumber;
    rows.sort((a, b) => compare(keyOf(a, column), keyOf(b, column)) * (descending ? -1 : 1));
    body.append(...rows);
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  all("table.sortable").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = make("button", { type: "button", title: header.title });
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header, column));
      header.append(button);
    });
  });
  all("table[data-filter]").forEach((table) => {
    if (table.tBodies[0].rows.length < 9) return;
    const input = make("input", { type: "search", placeholder: "Filter " + table.dataset.filter });
    input.setAttribute("aria-label", input.placeholder);
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      [...table.tBodies[0].rows].forEach((row) => { row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted); });
    });
    const line = make("p", { className: "filter" });
    line.append(input);
    table.parentElement.before(line);
  });

  /* copying */
  all(".copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = one("pre", button.parentElement).textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(one("pre", button.parentElement));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  });

  /* galleries as tabs */
  const galleries = one("[data-tabs]");
  if (galleries) {
    const panels = all(".gallery", galleries);
    const bar = make("div");
    bar.setAttribute("role", "tablist");
    bar.setAttribute("aria-label", "Kinds of errors");
    const tabs = panels.map((panel) => {
      const tab = make("button", { type: "button", id: "tab-" + panel.id });
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panel.id);
      tab.append(panel.dataset.title, make("small", { textContent: panel.dataset.total }));
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      return tab;
    });
    const select = (index, focus) => {
      tabs.forEach((tab, i) => {
        tab.setAttribute("aria-selected", String(i === index));
        tab.tabIndex = i === index ? 0 : -1;
        panels[i].hidden = i !== index;
      });
      if (focus) tabs[index].focus();
    };
    tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => select(index));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) select((index + step + tabs.length) % tabs.length, true);
      });
    });
    bar.append(...tabs);
    galleries.prepend(bar);
    galleries.classList.add("tabbed");
    select(0);
  }

  /* what is drawn over the pictures */
  const controls = one("[data-controls]");
  if (controls) {
    controls.hidden = false;
    const body = document.body.classList;
    const slider = one("[data-score-slider]");
    const output = one("[data-score-output]");
    const scored = all(".o[data-score]");
    const applyScore = () => {
      body.add("by-score");
      output.textContent = Number(slider.value).toFixed(2);
      scored.forEach((object) => object.classList.toggle("under", Number(object.dataset.score) < Number(slider.value)));
    };
    slider.addEventListener("input", applyScore);
    one("[data-score-reset]").addEventListener("click", () => { body.remove("by-score"); output.textContent = "suggested"; });
    all("[data-layer]").forEach((box) => box.addEventListener("change", () => {
      if (box.dataset.layer === "captions") body.toggle("captions", box.checked);
      else body.toggle("no-" + box.dataset.layer, !box.checked);
    }));
    const filter = one("[data-class-filter]");
    filter?.addEventListener("change", () => {
      all(".gallery").forEach((gallery) => {
        const cards = all(".card[data-class]", gallery);
        cards.forEach((card) => { card.hidden = Boolean(filter.value) && card.dataset.class !== filter.value; });
        one(".none", gallery).hidden = cards.length === 0 || cards.some((card) => !card.hidden);
      });
    });
  }

  /* enlarged pictures */
  const viewer = one(".viewer");
  let shown = null;
  const show = (card) => {
    const shot = one(".shot", card).cloneNode(true);
    const [, , width, height] = one(".over", shot).getAttribute("viewBox").split(" ").map(Number);
    shot.style.setProperty("--ratio", width / height);
    const font = one(".over", shot);
    font.setAttribute("font-size", Math.min(Number(font.getAttribute("font-size")), width / 62));
    one(".viewer-stage").replaceChildren(shot);
    one(".viewer-text").textContent = all("figcaption > *", card).map((part) => part.textContent).join(" · ");
    shown = card;
    if (!viewer.open) viewer.showModal();
  };
  const step = (direction) => {
    const cards = all(".card", shown.parentElement).filter((card) => !card.hidden);
    show(cards[(cards.indexOf(shown) + direction + cards.length) % cards.length]);
  };
  all(".card .open").forEach((button) => button.addEventListener("click", () => show(button.closest(".card"))));
  all("[data-step]", viewer).forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
  one("[data-close]", viewer).addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => one(".open", shown).focus());
  viewer.addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (direction) step(direction);
  });

  /* values under the pointer */
  all(".chart[data-chart]").forEach((chart) => {
    const { x: xName, lines, steps } = JSON.parse(chart.dataset.chart);
    const svg = one("svg", chart);
    const cursor = one(".cursor", chart);
    const readout = one(".readout", chart);
    const nearest = (at, x) => at.reduce((best, point, i) => (Math.abs(point[0] - x) < Math.abs(at[best][0] - x) ? i : best), 0);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const index = nearest(lines[0].at, x);
      const values = lines.map((line) => line.name + "  " + line.values[nearest(line.at, lines[0].at[index][0])]);
      readout.textContent = [xName + " " + steps[0][index], ...values].join("\n");
      cursor.setAttribute("x1", lines[0].at[index][0]);
      cursor.setAttribute("x2", lines[0].at[index][0]);
      cursor.style.visibility = "visible";
      readout.classList.add("on");
      readout.style.right = x > svg.viewBox.baseVal.width / 2 ? "auto" : "";
      readout.style.left = x > svg.viewBox.baseVal.width / 2 ? "3.6rem" : "";
    });
    svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; readout.classList.remove("on"); });
  });
})();
