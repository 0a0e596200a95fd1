//! The other nodes, as the network is to know them: where each one's pods are, as the server says.

use api::view;
use client::Caches;
use network::Peer;
use tokio::sync::watch;

/// Follows them. What comes out is complete from the beginning: it waits for the view.
pub async fn follow(views: &Caches, own: &str) -> watch::Receiver<Vec<Peer>> {
    let informer = views.of::<view::Peer>();
    informer.caught_up(0).await;
    let (told, peers) = watch::channel(Vec::new());
    let own = own.to_owned();
    informer.on_change(move |old, new| {
        let name = new.or(old).map(|peer| &*peer.metadata.name).filter(|name| *name != own);
        if let Some(name) = name {
            told.send_if_modified(|known| change(known, name, new.map(read)));
        }
    });
    peers
}

/// Whether it is news.
fn change(known: &mut Vec<Peer>, name: &str, new: Option<Peer>) -> bool {
    match (known.iter().position(|peer| peer.name == name), new) {
        (Some(at), Some(new)) if known[at] == new => return false,
        (Some(at), Some(new)) => known[at] = new,
        (Some(at), None) => drop(known.remove(at)),
        (None, Some(new)) => known.push(new),
        (None, None) => return false,
    }
    true
}

/// What is no address or range is for others.
fn read(peer: &view::Peer) -> Peer {
    Peer {
        name: peer.metadata.name.clone(),
        addresses: peer.spec.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        pods: peer.spec.pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_news_is_told() {
        let peer = |address: &str| {
            let spec = view::PeerSpec {
                addresses: vec![address.into(), "fd00::1".into(), "b.example".into()],
                pod_cidrs: vec!["10.244.1.0/24".into(), "fd00:1::/64".into()],
                ..view::PeerSpec::default()
            };
            let metadata = view::Meta { name: "b".into(), ..view::Meta::default() };
            Some(read(&view::Peer { metadata, spec }))
        };
        let mut known = Vec::new();
        assert!(change(&mut known, "b", peer("192.0.2.2")) && !change(&mut known, "b", peer("192.0.2.2")));
        assert_eq!((known[0].addresses.len(), known[0].pods.len()), (2, 2));
        assert!(change(&mut known, "b", peer("192.0.2.3")) && known.len() == 1);
        assert!(change(&mut known, "b", None) && known.is_empty() && !change(&mut known, "b", None));
    }
}
