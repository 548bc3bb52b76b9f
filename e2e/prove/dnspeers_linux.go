package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gatun/e2e/lab"
)

// The zones of the lab's own DNS: a root, a signed zone with many kinds of records, a plain one
// and a reverse one; and the source of a program that is linked with musl.
//
//go:embed testdata/dns/*
var dnsZones embed.FS

// dnsPeer is one nameserver that others wrote. Each has an address of its own, 198.51.100.N and
// 2001:db8:2::N, and the ports that it can serve.
type dnsPeer struct {
	name string
	host int
	dot  int // port, 0: none
	doh  int
}

// The nameservers. knotd is authoritative, the root in a process of its own, as anywhere; unbound, named and kresd resolve from the lab's root
// and validate; dnsmasq and stubby ask unbound, stubby over TLS.
func dnsPeers() []dnsPeer {
	return []dnsPeer{
		{name: "root", host: 71}, {name: "knotd", host: 60}, {name: "unbound", host: 61, dot: 853, doh: 8443}, {name: "named", host: 62, dot: 853, doh: 8443},
		{name: "kresd", host: 64, dot: 853, doh: 8443}, {name: "dnsmasq", host: 65}, {name: "stubby", host: 66},
	}
}

func (p dnsPeer) addr4() string { return fmt.Sprintf("198.51.100.%d", p.host) }
func (p dnsPeer) addr6() string { return fmt.Sprintf("2001:db8:2::%d", p.host) }

// dnsWorld is a lab with real nameservers in it.
type dnsWorld struct {
	*lab.Lab
	dir     string
	peers   map[string]dnsPeer
	running map[string]*lab.Process
}

// dnsWorld builds the lab and starts the named peers; knotd holds the zones and always runs.
func (b *bench) dnsWorld(names ...string) (*dnsWorld, error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return nil, err
	}
	w := &dnsWorld{Lab: l, dir: filepath.Join(l.Dir, "dns"), peers: map[string]dnsPeer{}, running: map[string]*lab.Process{}}
	steps := []func() error{w.addresses, w.zones, func() error { return w.startPeers(append([]string{"root", "knotd"}, names...)) }}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return w, nil
}

func (w *dnsWorld) addresses() error {
	for n := 60; n < 72; n++ {
		for _, a := range []string{fmt.Sprintf("198.51.100.%d/24", n), fmt.Sprintf("2001:db8:2::%d/64", n)} {
			command := []string{"-n", string(w.Server), "address", "add", a, "dev", "eth0"}
			if strings.Contains(a, ":") {
				command = append(command, "nodad")
			}
			if out, err := exec.Command("ip", command...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip address add %s: %w: %s", a, err, out)
			}
		}
	}
	return nil
}

// zones writes the zone files, signs the root and kinds.example, and spoils one signature.
func (w *dnsWorld) zones() error {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return err
	}
	list, err := dnsZones.ReadDir("testdata/dns")
	if err != nil {
		return err
	}
	for _, e := range list {
		b, err := dnsZones.ReadFile("testdata/dns/" + e.Name())
		if err != nil {
			return err
		}
		if e.Name() == "kinds.example.zone" {
			b = append(b, largeSets()...)
		}
		if err := w.write(e.Name(), string(b)); err != nil {
			return err
		}
	}
	if err := w.sign("kinds.example", "kinds.example"); err != nil {
		return err
	}
	ds, err := os.ReadFile(filepath.Join(w.dir, "dsset-kinds.example."))
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(w.dir, "root.zone"))
	if err != nil {
		return err
	}
	if err := w.write("root.zone", string(root)+string(ds)); err != nil {
		return err
	}
	if err := w.sign(".", "root"); err != nil {
		return err
	}
	return w.spoil()
}

// largeSets are answers that do not fit into a datagram, and names at the limits of length.
func largeSets() string {
	var s strings.Builder
	for i := range 60 {
		fmt.Fprintf(&s, "sixty IN A 198.51.100.%d\n", i+100)
	}
	for i := range 120 {
		fmt.Fprintf(&s, "manyaddr IN A 203.0.113.%d\n", i+1)
	}
	for i := range 20 {
		fmt.Fprintf(&s, "bigtxt IN TXT %q\n", strings.Repeat(string(rune('a'+i)), 200))
	}
	fmt.Fprintf(&s, "midtxt IN TXT")
	for i := range 4 {
		fmt.Fprintf(&s, " %q", strings.Repeat(string(rune('a'+i)), 200))
	}
	fmt.Fprintf(&s, "\n%s IN A 198.51.100.10\n", longName())
	return s.String()
}

// longName is a name of 255 bytes on the wire.
func longName() string {
	const label = "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0" // 63
	return strings.Repeat(label+".", 3) + strings.Repeat("x", 47) + ".kinds.example."
}

func (w *dnsWorld) write(name, text string) error {
	return os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644)
}

func (w *dnsWorld) sign(origin, file string) error {
	for _, command := range [][]string{
		{"dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", origin},
		{"dnssec-signzone", "-P", "-z", "-S", "-o", origin, "-f", file + ".signed", file + ".zone"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = w.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", command, err, out)
		}
	}
	return nil
}

// spoil changes an address behind its signature.
func (w *dnsWorld) spoil() error {
	file := filepath.Join(w.dir, "kinds.example.signed")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	const good = "bogus.kinds.example.\t300\tIN A\t198.51.100.10"
	text := strings.Replace(string(b), good, strings.Replace(good, "100.10", "100.66", 1), 1)
	if text == string(b) {
		return fmt.Errorf("%s has no line %q", file, good)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

func (w *dnsWorld) startPeers(names []string) error {
	for _, p := range dnsPeers() {
		for _, name := range names {
			if name != p.name {
				continue
			}
			if err := w.startPeer(p); err != nil {
				return err
			}
			w.peers[name] = p
		}
	}
	return nil
}

func (w *dnsWorld) startPeer(p dnsPeer) error {
	command, err := w.peerCommand(p)
	if err != nil {
		return err
	}
	path, err := tool(command[0])
	if err != nil {
		return err
	}
	proc, err := w.Start(w.Server, lab.Spec{Dir: w.dir, Log: filepath.Join(w.dir, p.name+".log")}, append([]string{path}, command[1:]...)...)
	if err != nil {
		return err
	}
	w.running[p.name] = proc
	err = lab.Wait(20*time.Second, p.name+" answers", func() (bool, error) {
		select {
		case <-proc.Done():
			return true, fmt.Errorf("ended with %d", proc.ExitCode())
		default:
		}
		name := "www.plain.example"
		if p.name == "root" {
			name = "ns.root"
		}
		r, err := w.Peer(context.Background(), w.Twin, "dns", "-timeout", "300ms", name, p.addr4())
		if err == nil && r.Result == "NOERROR" && r.Data != "" {
			return true, nil
		}
		return false, errors.Join(err, fmt.Errorf("the helper saw %q %q", r.Result, r.Error))
	})
	if err != nil {
		text, _ := os.ReadFile(proc.Log)
		return fmt.Errorf("%s: %w: %s", p.name, err, text)
	}
	return nil
}

// tool is the path of a server, which may lie where only root looks.
func tool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := "/usr/sbin/" + name
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not installed: see the list of tools in .ci/run", name)
	}
	return path, nil
}

// url is the resolver URL of a peer for gatun: plain, tcp, dot or doh.
func (p dnsPeer) url(scheme string) string {
	const verify = "?verify=peer.example.org"
	switch scheme {
	case "dot":
		return fmt.Sprintf("dot://%s:%d%s", p.addr4(), p.dot, verify)
	case "doh":
		return fmt.Sprintf("doh://%s:%d/dns-query%s", p.addr4(), p.doh, verify)
	case "tcp":
		return "tcp://" + p.addr4()
	case "dns6":
		return "dns://[" + p.addr6() + "]"
	}
	return "dns://" + p.addr4()
}

// at4 is where a peer is asked directly.
func (p dnsPeer) at4() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(p.addr4()), 53)
}
