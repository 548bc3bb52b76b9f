package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// synsCommand connects -n times, one after the other, to ten ports in turn, and says when each
// connect(2) was called: "PORT:NANOSECONDS …" by the wall clock, which is that of synwatch.
func synsCommand(args []string) (result, error) {
	n := 500
	rest, err := flags("syns", args, 1, intFlag(&n, "n", "connects"))
	if err != nil {
		return result{}, err
	}
	to, err := netip.ParseAddr(rest[0])
	if err != nil {
		return result{}, err
	}
	var stamps strings.Builder
	r := result{Result: "done"}
	fails := 0
	for i := range n {
		port := portScan + i%10
		at, err := connectOnce(netip.AddrPortFrom(to, uint16(port)))
		if err != nil {
			fails++
			_, r.Error = outcome(err)
		}
		fmt.Fprintf(&stamps, "%d:%d ", port, at)
	}
	r.Data, r.Extra = stamps.String(), map[string]float64{"failed": float64(fails)}
	return r, nil
}

func connectOnce(to netip.AddrPort) (at int64, err error) {
	fd, err := unix.Socket(familyOf(to.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return time.Now().UnixNano(), err
	}
	defer unix.Close(fd)
	address := sockaddr(to)
	at = time.Now().UnixNano()
	return at, unix.Connect(fd, address)
}

// synwatchCommand writes down every TCP SYN over IPv4 that comes in on an interface, until its
// input ends: "ADDR:PORT:NANOSECONDS …", the source, the destination's port, and the kernel's
// time-stamp of the packet.
func synwatchCommand(args []string) (result, error) {
	rest, err := flags("synwatch", args, 1, func(*flag.FlagSet) {})
	if err != nil {
		return result{}, err
	}
	fd, err := listenPackets(rest[0])
	if err != nil {
		return result{}, err
	}
	var mu sync.Mutex
	var seen strings.Builder
	go func() {
		packet, control := make([]byte, 128), make([]byte, 128)
		for {
			n, cn, _, _, err := unix.Recvmsg(fd, packet, control, 0)
			if err != nil {
				return
			}
			source, port, ok := parseSYN(packet[:n])
			at, stamped := kernelStamp(control[:cn])
			if ok && stamped {
				mu.Lock()
				fmt.Fprintf(&seen, "%s:%d:%d ", source, port, at)
				mu.Unlock()
			}
		}
	}()
	fmt.Println(`{"result":"watching"}`)
	_, _ = io.Copy(io.Discard, os.Stdin)
	time.Sleep(50 * time.Millisecond) // what the kernel has counted is read
	mu.Lock()
	defer mu.Unlock()
	return result{Result: "done", Data: seen.String()}, nil
}

func listenPackets(iface string) (fd int, err error) {
	index, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(index)
	request, err := unix.NewIfreq(iface)
	if err != nil {
		return -1, err
	}
	if err := unix.IoctlIfreq(index, unix.SIOCGIFINDEX, request); err != nil {
		return -1, fmt.Errorf("interface %s: %w", iface, err)
	}
	const ipv4 = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8 // in network order
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ipv4); err != nil {
		return -1, err
	}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) },
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: int(request.Uint32())})
		},
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// parseSYN reads source address and destination port of a packet that opens a connection.
func parseSYN(b []byte) (source netip.Addr, port uint16, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_TCP {
		return source, 0, false
	}
	header := int(b[0]&15) * 4
	if len(b) < header+20 || b[header+13]&0x12 != 0x02 { // SYN without ACK
		return source, 0, false
	}
	return netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[header+2:]), true
}

// kernelStamp is the time at which the kernel received a packet.
func kernelStamp(control []byte) (nanoseconds int64, ok bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return int64(binary.NativeEndian.Uint64(m.Data))*1e9 + int64(binary.NativeEndian.Uint64(m.Data[8:])), true
		}
	}
	return 0, false
}
