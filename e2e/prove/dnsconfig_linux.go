package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// peerCommand writes the configuration of a nameserver and returns how it is started.
func (w *dnsWorld) peerCommand(p dnsPeer) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(w.dir, p.name), 0o755); err != nil {
		return nil, err
	}
	switch p.name {
	case "root":
		return []string{"knotd", "-c", "root.conf"}, w.write("root.conf", w.knotConf(p, ".", "root.signed"))
	case "knotd":
		return []string{"knotd", "-c", "knot.conf"}, w.write("knot.conf", w.knotConf(p,
			"kinds.example", "kinds.example.signed", "plain.example", "plain.example.zone", "100.51.198.in-addr.arpa", "100.51.198.in-addr.arpa.zone"))
	case "unbound":
		return []string{"unbound", "-d", "-c", "unbound.conf"}, w.write("unbound.conf", w.unboundConf(p))
	case "named":
		conf, err := w.namedConf(p)
		if err != nil {
			return nil, err
		}
		return []string{"named", "-g", "-c", "named.conf"}, w.write("named.conf", conf)
	case "kresd":
		conf, err := w.kresdConf(p)
		if err != nil {
			return nil, err
		}
		return []string{"kresd", "-n", "-c", filepath.Join(w.dir, "kresd.conf"), filepath.Join(w.dir, "kresd")}, w.write("kresd.conf", conf)
	case "dnsmasq":
		return []string{
			"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=",
			"--bind-interfaces", "--except-interface=lo", "--listen-address=" + p.addr4(), "--listen-address=" + p.addr6(), "--server=198.51.100.61", "--log-facility=-",
		}, nil
	case "stubby":
		return []string{"stubby", "-C", filepath.Join(w.dir, "stubby.yml")}, w.write("stubby.yml", w.stubbyConf(p))
	}
	return nil, fmt.Errorf("no nameserver is called %q", p.name)
}

// knotConf serves zones, given as pairs of domain and file.
func (w *dnsWorld) knotConf(p dnsPeer, zones ...string) string {
	var s strings.Builder
	dir := filepath.Join(w.dir, p.name)
	fmt.Fprintf(&s, "server:\n  rundir: %q\n  listen: [%s@53, %s@53]\n  nsid: %s\n", dir, p.addr4(), p.addr6(), p.name)
	fmt.Fprintf(&s, "database:\n  storage: %q\nlog:\n- target: stderr\n  any: info\nzone:\n", dir)
	for i := 0; i < len(zones); i += 2 {
		fmt.Fprintf(&s, "- domain: %s\n  file: %q\n", zones[i], filepath.Join(w.dir, zones[i+1]))
	}
	return s.String()
}

func (w *dnsWorld) unboundConf(p dnsPeer) string {
	cert, key := w.CertFiles()
	var s strings.Builder
	s.WriteString("server:\n")
	for _, line := range []string{
		"interface: " + p.addr4(), "interface: " + p.addr6(),
		fmt.Sprintf("interface: %s@%d", p.addr4(), p.dot), fmt.Sprintf("interface: %s@%d", p.addr4(), p.doh),
		fmt.Sprintf("tls-port: %d", p.dot), fmt.Sprintf("https-port: %d", p.doh), "tls-service-pem: " + cert, "tls-service-key: " + key,
		`do-daemonize: no`, `username: ""`, `chroot: ""`, `pidfile: ""`, `use-syslog: no`, `logfile: ""`, "directory: " + w.dir,
		"access-control: 0.0.0.0/0 allow", "access-control: ::/0 allow", "root-hints: hints", "trust-anchor-file: dsset-.",
		`module-config: "validator iterator"`, "ede: yes", "nsid: ascii_unbound", "rrset-roundrobin: no", "pad-responses: yes",
		"local-zone: 100.51.198.in-addr.arpa. nodefault", "num-threads: 1", "msg-cache-size: 32m", "rrset-cache-size: 64m",
		"local-zone: load.example. redirect", `local-data: "load.example. 300 IN A 198.51.100.10"`, "incoming-num-tcp: 100",
	} {
		fmt.Fprintf(&s, "  %s\n", line)
	}
	s.WriteString("remote-control:\n  control-enable: no\n")
	if err := w.write("hints", ". 300 IN NS ns.root.\nns.root. 300 IN A 198.51.100.71\nns.root. 300 IN AAAA 2001:db8:2::71\n"); err != nil {
		return "hints: " + err.Error()
	}
	return s.String()
}

// rootDS is the lab's trust anchor: key tag, algorithm, digest type and digest.
func (w *dnsWorld) rootDS() (string, error) {
	b, err := os.ReadFile(filepath.Join(w.dir, "dsset-."))
	if err != nil {
		return "", err
	}
	f := strings.Fields(string(b)) // . IN DS tag alg type digest…
	if len(f) < 7 {
		return "", fmt.Errorf("dsset-.: %q", b)
	}
	return strings.Join(f[3:6], " ") + " " + strings.Join(f[6:], ""), nil
}

func (w *dnsWorld) namedConf(p dnsPeer) (string, error) {
	ds, err := w.rootDS()
	if err != nil {
		return "", err
	}
	f := strings.Fields(ds)
	cert, key := w.CertFiles()
	if err := w.write("named.hints", ". 300 IN NS ns.root.\nns.root. 300 IN A 198.51.100.71\nns.root. 300 IN AAAA 2001:db8:2::71\n"); err != nil {
		return "", err
	}
	return fmt.Sprintf(`controls { };
tls lab { cert-file "%[1]s"; key-file "%[2]s"; };
http lab { endpoints { "/dns-query"; }; };
options {
	directory "%[3]s"; pid-file none; session-keyfile none; lock-file none; managed-keys-directory "%[3]s";
	listen-on { %[4]s; }; listen-on-v6 { %[5]s; };
	listen-on port %[6]d tls lab { %[4]s; };
	listen-on port %[7]d tls lab http lab { %[4]s; };
	recursion yes; allow-query { any; }; allow-recursion { any; }; empty-zones-enable no;
	dnssec-validation yes; server-id "named"; query-source address 198.51.100.%[8]d;
};
trust-anchors { . static-ds %[9]s %[10]s %[11]s "%[12]s"; };
zone "." { type hint; file "named.hints"; };
`, cert, key, w.dir, p.addr4(), p.addr6(), p.dot, p.doh, p.host, f[0], f[1], f[2], f[3]), nil
}

func (w *dnsWorld) kresdConf(p dnsPeer) (string, error) {
	ds, err := w.rootDS()
	if err != nil {
		return "", err
	}
	cert, key := w.CertFiles()
	return fmt.Sprintf(`net.ipv6 = true
net.listen('%[1]s', 53, { kind = 'dns' })
net.listen('%[2]s', 53, { kind = 'dns' })
net.listen('%[1]s', %[3]d, { kind = 'tls' })
net.listen('%[1]s', %[4]d, { kind = 'doh2' })
net.tls('%[5]s', '%[6]s')
cache.size = 20 * MB
modules.unload('ta_update')
modules.unload('ta_signal_query')
modules.unload('priming')
modules.load('hints > iterate')
hints.root({ ['ns.root.'] = { '198.51.100.71' } })
trust_anchors.remove('.')
trust_anchors.add('. IN DS %[7]s')
`, p.addr4(), p.addr6(), p.dot, p.doh, cert, key, ds), nil
}

func (w *dnsWorld) stubbyConf(p dnsPeer) string {
	return fmt.Sprintf(`resolution_type: GETDNS_RESOLUTION_STUB
dns_transport_list:
  - GETDNS_TRANSPORT_TLS
tls_authentication: GETDNS_AUTHENTICATION_REQUIRED
tls_query_padding_blocksize: 128
tls_ca_file: %q
appdata_dir: %q
idle_timeout: 10000
listen_addresses:
  - %s
  - %s
upstream_recursive_servers:
  - address_data: 198.51.100.61
    tls_auth_name: "peer.example.org"
`, w.CAFile(), w.dir, p.addr4(), p.addr6())
}
