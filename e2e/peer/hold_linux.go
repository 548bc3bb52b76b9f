package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// holdCommand opens idle TCP connections, says so, and keeps them until its input ends.
func holdCommand(args []string) (result, error) {
	n, workers, timeout := 100, 64, 20*time.Second
	rest, err := flags("hold", args, 1, func(fs *flag.FlagSet) {
		fs.IntVar(&n, "n", n, "connections")
		fs.IntVar(&workers, "workers", workers, "dialled at a time")
		fs.DurationVar(&timeout, "timeout", timeout, "of one dial")
	})
	if err != nil {
		return result{}, err
	}
	conns := make([]net.Conn, n)
	errs := make([]error, n)
	next := make(chan int)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range next {
				conns[i], errs[i] = net.DialTimeout("tcp", rest[0], timeout)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	fails, last := 0, ""
	for i, err := range errs {
		if err != nil {
			fails, last = fails+1, err.Error()
			continue
		}
		defer conns[i].Close()
	}
	fmt.Printf("{\"result\":\"holding\",\"extra\":{\"held\":%d,\"failed\":%d}}\n", n-fails, fails)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return result{Result: "done", Error: last}, nil
}

// pairsCommand sends one datagram from each of -sockets sockets to each of -peers addresses
// counted up from ADDR:PORT, reads the answers, says how many came, and keeps the sockets until
// its input ends.
func pairsCommand(args []string) (result, error) {
	sockets, peers := 64, 782
	rest, err := flags("pairs", args, 1, func(fs *flag.FlagSet) {
		fs.IntVar(&sockets, "sockets", sockets, "sockets")
		fs.IntVar(&peers, "peers", peers, "peers of each socket")
	})
	if err != nil {
		return result{}, err
	}
	first, err := netip.ParseAddrPort(rest[0])
	if err != nil {
		return result{}, err
	}
	var group sync.WaitGroup
	answers := make([]int, sockets)
	for i := range sockets {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return result{}, err
		}
		defer c.Close()
		group.Go(func() { answers[i] = askPeers(c, first, peers) })
	}
	group.Wait()
	total := 0
	for _, n := range answers {
		total += n
	}
	fmt.Printf("{\"result\":\"holding\",\"extra\":{\"pairs\":%d,\"answered\":%d}}\n", sockets*peers, total)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return result{Result: "done"}, nil
}

// askPeers sends in small bursts and waits for each burst's answers, so that what is counted is
// the firewall's table and not a socket buffer.
func askPeers(c *net.UDPConn, peer netip.AddrPort, n int) int {
	const burst = 4 // of each of 64 sockets: fewer than the 500 packets that a TUN queues
	b := make([]byte, 64)
	got := 0
	for sent := 0; sent < n; {
		in := 0
		for ; in < burst && sent < n; in++ {
			_, _ = c.WriteToUDPAddrPort([]byte("x"), peer)
			peer = netip.AddrPortFrom(peer.Addr().Next(), peer.Port())
			sent++
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for range in {
			if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
				break
			}
			got++
		}
	}
	return got
}
