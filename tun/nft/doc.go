// Package nft has what rooms that watch nftables share: which notifications of the kernel are not
// worth a look. tun/route and tun/handback call it. It opens no socket and knows no table.
package nft
