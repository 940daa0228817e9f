//! The frame of a page, and what pages share: one file, which needs no network and no script.

use crate::svg::escaped;

/// How each page of this program begins, by which it recognises its own. The page of traces begins in the same way.
pub const BEGINNING: &str = "<!doctype html>\n<!-- A page of convoy -->";
const STYLE: &str = include_str!("page.css");

/// A page with a title, which is also its first heading.
pub fn page(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "{BEGINNING}\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )
}
