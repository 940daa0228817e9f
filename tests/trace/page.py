"""Opens a trace's page in headless Chromium as a reader would: looks at it, zooms, points at boxes, changes the step. Prints
what it saw as JSON. Needs selenium, chromium and chromedriver.

usage: page.py PAGE.html [SCREENSHOT.png]
"""

import json
import os
import re
import sys

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.chrome.service import Service


def main() -> None:
    page = os.path.abspath(sys.argv[1])
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CONVOY_CHROMIUM", "/usr/bin/chromium")
    for argument in ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1500", "--host-resolver-rules=MAP * ~NOTFOUND"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.get("file://" + page)
        find = lambda selector: driver.find_element(By.CSS_SELECTOR, selector)
        boxes = lambda: driver.find_elements(By.CSS_SELECTOR, "rect.box")
        seen = {"title": find("h1").text, "verdict": find("#verdict").text, "boxes": len(boxes()), "range": find("#range").text}
        seen["rows"] = [text.text for text in driver.find_elements(By.CSS_SELECTOR, "#lines > text") if text.text]
        seen["uses"] = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#uses tr")]
        seen["charts"] = len(driver.find_elements(By.CSS_SELECTOR, "#course svg"))
        # The widest box of a convolution's backward pass: pointing at it says what it is.
        layers_of = lambda boxes: [box for box in boxes if re.match(r"conv\d backward", box.get_attribute("data-name"))]
        widest = max(layers_of(boxes()), key=lambda box: float(box.get_attribute("width")))
        seen["pointed_at"] = widest.get_attribute("data-name")
        ActionChains(driver).move_to_element(widest).perform()
        seen["tip"] = find("#tip").text
        # What is sent takes no time to speak of: a reader turns the wheel over it until there is something to point at.
        wide = lambda box: float(box.get_attribute("width"))
        sent = max((box for box in boxes() if box.get_attribute("data-name").startswith("send activations")), key=wide)
        name = sent.get_attribute("data-name")
        for _ in range(40):
            sent = max((box for box in boxes() if box.get_attribute("data-name") == name), key=wide)
            if wide(sent) >= 4:
                break
            ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(sent), 0, -300).perform()
        ActionChains(driver).move_to_element(sent).perform()
        seen["ways"] = len(driver.find_elements(By.CSS_SELECTOR, "path.way"))
        seen["tip_of_sent"] = find("#tip").text
        find("#all").click()
        if len(sys.argv) > 2:
            ActionChains(driver).move_to_element(max(layers_of(boxes()), key=wide)).perform()
            driver.save_screenshot(sys.argv[2])
        find("#in").click()
        seen["zoomed"] = find("#range").text
        area = find("#lines")
        ActionChains(driver).scroll_from_origin(ScrollOrigin.from_element(area), 0, -300).perform()
        seen["zoomed_by_wheel"] = find("#range").text
        find("#all").click()
        seen["whole_again"] = find("#range").text
        options = driver.find_elements(By.CSS_SELECTOR, "#step option")
        seen["steps"] = [option.text for option in options]
        options[-1].click()
        seen["other_step"] = find("#range").text
        seen["errors"] = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        seen["requests"] = driver.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)")
        print(json.dumps(seen))
    finally:
        driver.quit()


main()
