//! From text to the parser's tree, within bounds.

use sqlparser::ast;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer};

use super::Read;
use super::refusal::cut;
use crate::wire::reply::{Report, SqlState};

/// The longest query that is read.
const LONGEST: usize = 16 * 1024;

/// Its most words, numbers and signs.
const MOST_TOKENS: usize = 1000;

/// Its most of them that may be operators. Chains of these become as deep as they are long, whatever the parser's limit; unoptimised, each
/// takes 12 KB of a stack of 2 MB.
const MOST_OPERATORS: usize = 100;

/// How deep parentheses and what else the parser nests may go.
const DEEPEST: usize = 25;

/// The tree of a statement.
pub(super) fn parse(statement: &str) -> Read<ast::Query> {
    let too_complex = || Report::new(SqlState(*b"54001"), "the query is too long or too deep");
    if statement.len() > LONGEST {
        return Err(too_complex());
    }
    let dialect = PostgreSqlDialect {};
    let syntax = |message: &str| {
        let message = format!("syntax error: {}", cut(message));
        Report::new(SqlState::SYNTAX_ERROR, message)
    };
    let tokens = Tokenizer::new(&dialect, statement).tokenize();
    let tokens = tokens.map_err(|error| syntax(&error.message))?;
    let words = tokens
        .iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)));
    let operators = words.clone().filter(|token| may_operate(token));
    if words.count() > MOST_TOKENS || operators.count() > MOST_OPERATORS {
        return Err(too_complex());
    }
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(DEEPEST)
        .with_tokens(tokens);
    let parsed = parser.parse_query().and_then(|query| {
        let next = parser.peek_token().token;
        if next == Token::EOF {
            Ok(query)
        } else {
            Err(ParserError::ParserError(format!("unexpected {next}")))
        }
    });
    match parsed {
        Ok(query) => Ok(*query),
        Err(ParserError::RecursionLimitExceeded) => Err(too_complex()),
        Err(ParserError::ParserError(message) | ParserError::TokenizerError(message)) => {
            Err(syntax(&message))
        }
    }
}

/// Whether it can make an expression deeper without the parser's knowing: no name, value or what stands around them.
fn may_operate(token: &Token) -> bool {
    !matches!(
        token,
        Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::Placeholder(_)
            | Token::Comma
            | Token::LParen
            | Token::RParen
    ) && !matches!(token, Token::Word(word) if word.keyword == Keyword::NoKeyword)
}
