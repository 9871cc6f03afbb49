//! A request: a query and its candidate documents.

use std::borrow::Cow;

/// A query with its candidate documents, usually the best results of a first-stage search.
///
/// Texts can be borrowed, so that nothing is copied from a search engine's buffers.
///
/// ```
/// use erank_core::{Document, Request};
///
/// let plain = Request::new("jet noise", ["Jet noise was measured.", "A recipe for bread."]);
/// assert_eq!(plain.documents.len(), 2);
///
/// let hits = Request::new("jet noise", [
///     Document::new("Jet noise was measured.").with_id("doc-7").with_first_stage_score(12.3),
/// ]);
/// assert_eq!(hits.documents[0].id.as_deref(), Some("doc-7"));
///
/// // The goal of the search, for a prompt with an instruction.
/// let goal = Request::new("jet noise", ["Jet noise was measured."])
///     .with_instruction("A document is relevant if it reports a measurement.");
/// assert!(goal.instruction.is_some());
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Request<'a> {
    /// The search query.
    pub query: Cow<'a, str>,
    /// The goal of the search, or a definition of relevance, for the prompt. `None` takes the reranker's.
    pub instruction: Option<Cow<'a, str>>,
    /// The minimum score. `None` takes the reranker's.
    pub min_score: Option<f64>,
    /// The candidates, in the first stage's order. Ties in the ranking keep this order.
    pub documents: Vec<Document<'a>>,
}

impl<'a> Request<'a> {
    /// Creates a request from a query and anything that converts to documents: `&str`, `String` or
    /// [`Document`].
    pub fn new<D>(query: impl Into<Cow<'a, str>>, documents: impl IntoIterator<Item = D>) -> Self
    where
        D: Into<Document<'a>>,
    {
        let documents = documents.into_iter().map(Into::into).collect();
        Self { query: query.into(), instruction: None, min_score: None, documents }
    }

    /// Sets the goal of the search, or a definition of relevance. It replaces the reranker's
    /// [instruction](crate::RerankerBuilder::instruction) for this request.
    #[must_use]
    pub fn with_instruction(mut self, instruction: impl Into<Cow<'a, str>>) -> Self {
        self.instruction = Some(instruction.into());
        self
    }

    /// Sets the minimum score, from 0 to 1. It replaces the reranker's
    /// [minimum score](crate::RerankerBuilder::min_score) for this request.
    #[must_use]
    pub fn with_min_score(mut self, min_score: f64) -> Self {
        self.min_score = Some(min_score);
        self
    }
}

/// A candidate document.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Document<'a> {
    /// The document's text. A [blank](Document::is_blank) document gets
    /// [`DocumentError::Empty`](crate::DocumentError::Empty).
    pub text: Cow<'a, str>,
    /// The caller's identifier of the document, which the ranking repeats.
    pub id: Option<Cow<'a, str>>,
    /// The first stage's score (BM25, cosine or another; larger is better), for
    /// [`Fusion`](crate::Fusion).
    pub first_stage_score: Option<f64>,
}

impl<'a> Document<'a> {
    /// Creates a document without an identifier and without a first-stage score.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), id: None, first_stage_score: None }
    }

    /// Returns whether the text has nothing to judge: it is empty, or all of its characters are invisible, such as
    /// white space, control characters, zero-width spaces and byte order marks.
    ///
    /// ```
    /// use erank_core::Document;
    ///
    /// assert!(Document::new(" \t\u{200b}\u{feff}").is_blank());
    /// assert!(!Document::new("\u{200b}leaf").is_blank());
    /// ```
    pub fn is_blank(&self) -> bool {
        is_blank(&self.text)
    }

    /// Sets the identifier.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<Cow<'a, str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the first stage's score.
    #[must_use]
    pub fn with_first_stage_score(mut self, score: f64) -> Self {
        self.first_stage_score = Some(score);
        self
    }
}

/// Returns whether a text, which may be a part of a document, is [blank](Document::is_blank).
pub(crate) fn is_blank(text: &str) -> bool {
    text.chars().all(is_invisible)
}

/// Returns whether a character shows nothing: white space, a control character, one that Unicode calls default
/// ignorable, an interlinear annotation mark, or the blank Braille pattern.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

impl<'a> From<&'a str> for Document<'a> {
    fn from(text: &'a str) -> Self {
        Self::new(text)
    }
}

impl<'a> From<&'a String> for Document<'a> {
    fn from(text: &'a String) -> Self {
        Self::new(text.as_str())
    }
}

impl From<String> for Document<'_> {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}
