//! Which snapshots there are, and which of them are missing elsewhere.

use agent::{Failure, Repository, Roots};
use schema::facts::Origin;
use schema::root::Root;

/// The visible snapshots, by volume, oldest first. One whose root is damaged does not stand in the way of the others.
pub async fn snapshots(repository: &Repository) -> Result<Roots, Failure> {
    let mut roots = repository.roots(None).await?;
    roots.readable.sort_by(|a, b| (&a.volume, a.generation, a.slot).cmp(&(&b.volume, b.generation, b.slot)));
    Ok(roots)
}

/// What a snapshot and its copies have in common. What is said of one volume says nothing about another.
pub fn by_origin(root: &Root, repository: &Repository) -> (String, Origin) {
    (root.volume.clone(), Origin::of(root, repository.key.repo()))
}
