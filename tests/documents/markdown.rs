//! As much of Markdown as checking documents needs: blocks of code, code and links in running text, headings.

/// A fenced block.
pub struct Block<'a> {
    /// The first word behind the fence.
    pub language: &'a str,
    /// The rest of that line.
    pub note: &'a str,
    /// Its lines, with their numbers in the document.
    pub lines: Vec<(usize, &'a str)>,
}

/// A document, taken apart.
pub struct Document<'a> {
    pub blocks: Vec<Block<'a>>,
    /// Lines outside of blocks, with their numbers.
    pub text: Vec<(usize, &'a str)>,
}

impl<'a> Document<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut document = Self { blocks: Vec::new(), text: Vec::new() };
        let mut in_block = false;
        for (number, line) in (1..).zip(text.lines()) {
            match (line.strip_prefix("```"), in_block) {
                (Some(info), false) => {
                    let (language, note) = info.split_once(' ').unwrap_or((info, ""));
                    document.blocks.push(Block { language, note, lines: Vec::new() });
                    in_block = true;
                }
                (Some(_), true) => in_block = false,
                (None, true) => document.blocks.last_mut().expect("it was opened").lines.push((number, line)),
                (None, false) => document.text.push((number, line)),
            }
        }
        assert!(!in_block, "a block of code is not closed");
        document
    }

    /// Code in running text, with the line on which its paragraph begins. It may go over several lines.
    pub fn code(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for paragraph in self.text.split(|(_, line)| line.is_empty()).filter(|lines| !lines.is_empty()) {
            let lines: Vec<&str> = paragraph.iter().map(|(_, line)| *line).collect();
            let text = lines.join(" ");
            let spans = text.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| (paragraph[0].0, span.split_whitespace().collect::<Vec<_>>().join(" "))));
        }
        found
    }

    /// What links and images in running text lead to.
    pub fn links(&self) -> Vec<(usize, &'a str)> {
        let mut found = Vec::new();
        for &(number, line) in &self.text {
            // Code is no link.
            for prose in line.split('`').step_by(2) {
                let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
                found.extend(targets.map(|(target, _)| (number, target)));
            }
        }
        found
    }

    /// What its headings are reached by, as GitHub and mdBook name them.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.text.iter().filter(|(_, line)| line.starts_with('#'));
        let anchor = |heading: &str| -> String {
            let kept = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|&c| c.is_alphanumeric() || " -_".contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        headings.map(|(_, heading)| anchor(heading)).collect()
    }
}

#[test]
fn a_document_is_taken_apart() {
    let text = "# A title, of *two*\nSee [it](b.md#x) and `code [no](link)`, `over\nlines`.\n\n```sh gpu\n$ x\n```\n![p](p.png)";
    let document = Document::new(text);
    let block = &document.blocks[0];
    assert_eq!((block.language, block.note, &block.lines[..]), ("sh", "gpu", &[(6, "$ x")][..]));
    assert_eq!(document.code(), [(1, "code [no](link)".to_owned()), (1, "over lines".to_owned())]);
    assert_eq!(document.links(), [(2, "b.md#x"), (8, "p.png")]);
    assert_eq!(document.anchors(), ["a-title-of-two"]);
}
