//! Images: how they come, what holds them, and what goes.

mod collection;
mod image_gc;
mod images;
mod pulls;
