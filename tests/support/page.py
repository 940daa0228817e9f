"""Opens a page in headless Chromium, on a wide and on a narrow screen, and prints as JSON what is there: headings, verdicts,
the number of pictures and of marks in them, texts of pictures that overlap or leave their picture, and what the browser asked the network for.
Needs selenium, chromium and chromedriver.

usage: page.py REPORT.html [SCREENSHOT.png]
"""

import json
import os
import sys

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

LOOK = """
const pictures = [...document.querySelectorAll('figure svg')].filter(svg => !svg.closest('.key'));
const overlaps = [];
for (const svg of pictures) {
  const area = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.getBoundingClientRect(), text.textContent]);
  texts.forEach(([a, name], index) => {
    if (a.left < area.left - 1 || a.right > area.right + 1 || a.top < area.top - 1 || a.bottom > area.bottom + 1)
      overlaps.push([name, 'the edge']);
    for (const [b, other] of texts.slice(index + 1))
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) overlaps.push([name, other]);
  });
}
const all = (selector) => [...document.querySelectorAll(selector)];
return {
  title: document.querySelector('h1').textContent,
  headings: all('h2').map(h => h.textContent),
  verdicts: all('.verdicts li').map(li => li.textContent),
  pictures: pictures.length,
  images: all('figure img').filter(img => img.complete && img.naturalWidth > 1).length,
  marks: pictures.map(svg => svg.querySelectorAll('circle, polygon.run, polygon.mean, polygon.bar').length),
  heights: pictures.map(svg => svg.getBoundingClientRect().height),
  overlaps,
  wider_than_screen: document.documentElement.scrollWidth > window.innerWidth,
  requests: performance.getEntriesByType('resource').map(entry => entry.name),
};
"""


def main() -> None:
    page = os.path.abspath(sys.argv[1])
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CONVOY_CHROMIUM", "/usr/bin/chromium")
    for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        seen = {}
        for name, width in [("wide", 1280), ("narrow", 600)]:
            driver.set_window_size(width, 1000)
            driver.get("file://" + page)
            seen[name] = driver.execute_script(LOOK)
        seen["log"] = [entry["message"] for entry in driver.get_log("browser")]
        if len(sys.argv) > 2:
            driver.set_window_size(1040, 4000)
            driver.save_screenshot(sys.argv[2])
        print(json.dumps(seen))
    finally:
        driver.quit()


main()
