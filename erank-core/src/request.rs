//! What a caller asks for: a query and the documents to order for it.

use std::borrow::Cow;

/// A query with its candidate documents, usually the first stage's best.
///
/// Texts are borrowed where they can be: nothing is copied from a search engine's own buffers.
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
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Request<'a> {
    /// What the user searched for.
    pub query: Cow<'a, str>,
    /// The candidates, in the first stage's order; ties in the ranking keep this order.
    pub documents: Vec<Document<'a>>,
}

impl<'a> Request<'a> {
    /// A request for `query` over anything that turns into documents: `&str`, `String`,
    /// [`Document`].
    pub fn new<D>(query: impl Into<Cow<'a, str>>, documents: impl IntoIterator<Item = D>) -> Self
    where
        D: Into<Document<'a>>,
    {
        Self { query: query.into(), documents: documents.into_iter().map(Into::into).collect() }
    }
}

/// One candidate document.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Document<'a> {
    /// The document's text. An empty or blank text cannot be judged and is reported as such.
    pub text: Cow<'a, str>,
    /// The caller's own name for the document, handed back in the ranking.
    pub id: Option<Cow<'a, str>>,
    /// The first stage's score (BM25, cosine, …; larger is better), for [`Fusion`](crate::Fusion).
    pub first_stage_score: Option<f64>,
}

impl<'a> Document<'a> {
    /// A document with neither id nor first-stage score.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), id: None, first_stage_score: None }
    }

    /// Names the document.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<Cow<'a, str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Gives the first stage's score.
    #[must_use]
    pub fn with_first_stage_score(mut self, score: f64) -> Self {
        self.first_stage_score = Some(score);
        self
    }
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
