use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

#[tokio::test]
async fn every_byte_goes_once_and_in_order_through_pieces() {
    let (sender, mut receiver) = pair().await;
    let mut sender = Piecewise::new(sender, |socket| socket).unwrap();
    let sent: Vec<u8> = (0..500_000u32).flat_map(u32::to_be_bytes).collect();
    let copy = sent.clone();
    let sending = tokio::spawn(async move {
        let (head, rest) = copy.split_at(100_000);
        sender.write_all(head).await.unwrap();
        let mut rest = rest;
        while !rest.is_empty() {
            let (one, other) = rest.split_at(rest.len().min(6));
            let (other, third) = other.split_at(other.len().min(70_000));
            let slices = [&[], one, other, third].map(IoSlice::new);
            let count = sender.write_vectored(&slices).await.unwrap();
            assert!((1..=PIECE_BYTES).contains(&count), "{count}");
            rest = &rest[count..];
        }
        sender.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    receiver.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn the_kernel_is_told_to_keep_little_unsent() {
    let (sender, _receiver) = pair().await;
    let sender = Piecewise::new(sender, |socket| socket).unwrap();
    let unsent = socket2::SockRef::from(&sender.0).tcp_notsent_lowat().unwrap();
    assert_eq!(unsent, UNSENT_BYTES);
}
