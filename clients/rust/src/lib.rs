//! Client of a Hail Mary bus.
