//! Bounds on a build file's text, checked before it is parsed: what comes after the parser recurses over the syntax tree, and a tree
//! as deep as a file is long would exhaust any stack.

/// Largest build file. Generated ones reach a few hundred KiB.
pub(super) const MAX_SIZE: usize = 2 << 20;
/// Deepest nesting of brackets, and of indentation.
const MAX_NESTING: usize = 200;
/// Most operators in one expression: `a + b + …` is as deep as it is long.
const MAX_OPERATORS: usize = 2000;
/// Most `elif` in one file, for the same reason.
const MAX_ELIF: usize = 1000;

/// What is too much in `text`, and the line (from 1) where it became too much.
pub(super) fn check(text: &str) -> Result<(), (usize, &'static str)> {
    let mut lexer = Lexer { rest: text, line: 1 };
    // For each open bracket, the operators met since its last comma.
    let mut open = vec![0_usize];
    let mut operators = 0;
    let mut elifs = 0;
    let mut indents = vec![0_usize];
    while let Some(token) = lexer.next() {
        match token {
            Token::Open => {
                open.push(0);
            }
            Token::Close => {
                operators -= open.pop().unwrap_or(0);
                if open.is_empty() {
                    open.push(0);
                }
                // `f()()()`: each call is one level deeper.
                operators += 1;
                *open.last_mut().expect("never left empty") += 1;
            }
            Token::Comma => {
                operators -= std::mem::take(open.last_mut().expect("never left empty"));
            }
            Token::Line(indent) => {
                if open.len() == 1 {
                    operators = 0;
                    open[0] = 0;
                    while indents.last().is_some_and(|&last| last > indent) {
                        indents.pop();
                    }
                    if indents.last() != Some(&indent) {
                        indents.push(indent);
                    }
                }
            }
            Token::Operator => {
                operators += 1;
                *open.last_mut().expect("never left empty") += 1;
            }
            Token::Elif => elifs += 1,
        }
        if open.len() > MAX_NESTING || indents.len() > MAX_NESTING {
            return Err((lexer.line, "this is nested too deeply"));
        }
        if operators > MAX_OPERATORS {
            return Err((lexer.line, "this expression is too long"));
        }
        if elifs > MAX_ELIF {
            return Err((lexer.line, "the file has too many `elif`"));
        }
    }
    Ok(())
}

enum Token {
    Open,
    Close,
    Comma,
    /// The start of a line that is not empty, with its indentation.
    Line(usize),
    Operator,
    Elif,
}

struct Lexer<'t> {
    rest: &'t str,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<Token> {
        loop {
            let first = self.rest.chars().next()?;
            match first {
                '\n' => {
                    self.line += 1;
                    self.advance(1);
                    let text = self.rest.trim_start_matches([' ', '\t']);
                    if !text.starts_with(['\n', '\r', '#']) {
                        return Some(Token::Line(self.rest.len() - text.len()));
                    }
                }
                '#' => {
                    self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
                }
                '"' | '\'' => self.skip_string(first),
                c if c.is_alphanumeric() || c == '_' => {
                    let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
                    let word = &self.rest[..end.unwrap_or(self.rest.len())];
                    let token = match word {
                        "elif" => Some(Token::Elif),
                        "not" | "and" | "or" | "if" | "else" | "lambda" | "in" | "for" => {
                            Some(Token::Operator)
                        }
                        _ => None,
                    };
                    self.advance(word.len());
                    if token.is_some() {
                        return token;
                    }
                }
                c => {
                    self.advance(c.len_utf8());
                    match c {
                        '(' | '[' | '{' => return Some(Token::Open),
                        ')' | ']' | '}' => return Some(Token::Close),
                        ',' => return Some(Token::Comma),
                        c if c.is_whitespace() || c == '\\' => {}
                        _ => return Some(Token::Operator),
                    }
                }
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }

    fn skip_string(&mut self, quote: char) {
        let triple = [quote; 3].iter().collect::<String>();
        let end = if self.rest.starts_with(&triple) { triple } else { quote.to_string() };
        self.advance(end.len());
        while let Some(c) = self.rest.chars().next() {
            if self.rest.starts_with(&end) {
                self.advance(end.len());
                return;
            }
            if c == '\n' {
                if end.len() == 1 {
                    return; // an error, for the parser to report
                }
                self.line += 1;
            }
            self.advance(c.len_utf8());
            if c == '\\'
                && let Some(escaped) = self.rest.chars().next()
            {
                self.line += usize::from(escaped == '\n');
                self.advance(escaped.len_utf8());
            }
        }
    }
}
