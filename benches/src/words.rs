//! Texts with an exact number of tokens.

use erank_candle::PromptTokenizer;

use crate::checkpoint::splitmix;

/// Words that are one token each.
pub struct Words {
    words: Vec<String>,
    noise: u64,
}

impl Words {
    /// Selects words of a vocabulary that are one token each at the start of a text and after a space.
    ///
    /// # Errors
    /// Returns an error if there are fewer than 1,000 of them.
    pub fn of(tokenizer: &PromptTokenizer) -> Result<Self, String> {
        let is_one_token = |id: u32, word: &str| {
            let pair = tokenizer.encode_trusted(&format!("{word} {word}"));
            pair.is_ok_and(|ids| ids == [id, id])
        };
        let words: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .map(|id| (id, tokenizer.token_text(id).trim().to_owned()))
            .filter(|(_, word)| word.len() > 2 && word.bytes().all(|b| b.is_ascii_lowercase()))
            .filter(|(id, word)| is_one_token(*id, word))
            .map(|(_, word)| word)
            .take(4096)
            .collect();
        match words.len() {
            0..1000 => Err(format!("only {} words of one token", words.len())),
            _ => Ok(Self { words, noise: 0 }),
        }
    }

    /// Returns a text of `tokens` tokens, a different one at each call.
    pub fn text(&mut self, tokens: usize) -> String {
        let mut text = String::new();
        for _ in 0..tokens {
            self.noise = splitmix(self.noise);
            text.push_str(&self.words[self.noise as usize % self.words.len()]);
            text.push(' ');
        }
        text
    }
}
