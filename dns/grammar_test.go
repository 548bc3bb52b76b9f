package dns

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestParseResolver: what the grammar allows, and the one form in which each is written back.
func TestParseResolver(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":               "dns://192.0.2.1:53",
		"192.0.2.1:5353":          "dns://192.0.2.1:5353",
		"2001:db8::1":             "dns://[2001:db8::1]:53",
		"[2001:db8::1]":           "dns://[2001:db8::1]:53",
		"[2001:db8::1]:54":        "dns://[2001:db8::1]:54",
		"fe80::1%eth0":            "dns://[fe80::1%eth0]:53",
		"::ffff:192.0.2.1":        "dns://192.0.2.1:53",
		"dns://192.0.2.1":         "dns://192.0.2.1:53",
		"DNS://192.0.2.1/":        "dns://192.0.2.1:53",
		"dns://127.0.0.1:5353":    "dns://127.0.0.1:5353",
		"tcp://192.0.2.1:53":      "tcp://192.0.2.1:53",
		"tcp://[2001:db8::1]:530": "tcp://[2001:db8::1]:530",

		"dot://192.0.2.1?verify=dns.example":           "dot://192.0.2.1:853?verify=dns.example",
		"tls://192.0.2.1:8853?verify=dns.example":      "dot://192.0.2.1:8853?verify=dns.example",
		"dot://[2001:db8::1]?verify=dns.example":       "dot://[2001:db8::1]:853?verify=dns.example",
		"dot://192.0.2.1?verify=192.0.2.1":             "dot://192.0.2.1:853?verify=192.0.2.1",
		"dot://192.0.2.1?verify=2001:db8::1":           "dot://192.0.2.1:853?verify=2001:db8::1",
		"dot://DNS.Example.?ip=192.0.2.1":              "dot://dns.example:853?ip=192.0.2.1",
		"dot://dns.example:8853?ip=2001:db8::1":        "dot://dns.example:8853?ip=2001:db8::1",
		"dot://dns.example?ip=fe80::1%25eth0":          "dot://dns.example:853?ip=fe80::1%25eth0",
		"dot://dns.example?ip=::ffff:192.0.2.1":        "dot://dns.example:853?ip=192.0.2.1",
		"dot://router?ip=192.168.1.1&link-local":       "dot://router:853?ip=192.168.1.1&link-local",
		"https://dns.example?ip=192.0.2.1":             "https://dns.example:443/dns-query?ip=192.0.2.1",
		"doh://dns.example/?ip=192.0.2.1":              "https://dns.example:443/dns-query?ip=192.0.2.1",
		"https://dns.example/a/b?ip=192.0.2.1":         "https://dns.example:443/a/b?ip=192.0.2.1",
		"https://dns.example/%E2%82%AC?ip=192.0.2.1":   "https://dns.example:443/%E2%82%AC?ip=192.0.2.1",
		"https://192.0.2.1:8443/q?verify=dns.example":  "https://192.0.2.1:8443/q?verify=dns.example",
		"h3://dns.example?ip=192.0.2.1":                "h3://dns.example:443/dns-query?ip=192.0.2.1",
		"H3://[2001:db8::1]/x?verify=dns.example":      "h3://[2001:db8::1]:443/x?verify=dns.example",
		"doq://dns.example?ip=192.0.2.1":               "doq://dns.example:853?ip=192.0.2.1",
		"quic://192.0.2.1:784?verify=DNS.example":      "doq://192.0.2.1:784?verify=dns.example",
		"dns://192.0.2.1?name=Home":                    "dns://192.0.2.1:53?name=Home",
		"dns://192.0.2.1?name=At+home%20%26%20h%C3%B6": "dns://192.0.2.1:53?name=At+home+%26+h%C3%B6",
		"dns://192.0.2.1?blockedif=zeroip":             "dns://192.0.2.1:53",
		"dns://192.0.2.1?blockedif=empty":              "dns://192.0.2.1:53?blockedif=empty",
		"tcp://192.0.2.1?blockedif=refused":            "tcp://192.0.2.1:53?blockedif=refused",
		"dns://192.0.2.1?blockedif=disabled":           "dns://192.0.2.1:53?blockedif=disabled",
		"dns://192.0.2.1?search=Corp.Example,lan,lan":  "dns://192.0.2.1:53?search=corp.example,lan",
		"dns://192.0.2.1?search=.corp.example.":        "dns://192.0.2.1:53?search=corp.example",
		"dns://192.0.2.1?search=home.arpa":             "dns://192.0.2.1:53?search=home.arpa",
		"dns://192.0.2.1?search=168.192.in-addr.arpa":  "dns://192.0.2.1:53?search=168.192.in-addr.arpa",
		"dns://192.0.2.1?search=example.co.uk":         "dns://192.0.2.1:53?search=example.co.uk",
		"dns://192.0.2.1?search=me.github.io":          "dns://192.0.2.1:53?search=me.github.io",
		"dns://192.0.2.1?search-only&search=a.example": "dns://192.0.2.1:53?search=a.example&search-only",
		"dns://192.168.1.1?link-local":                 "dns://192.168.1.1:53?link-local",
		"dot://192.0.2.1?link-local&search-only&search=b.example,a.example&blockedif=empty&verify=d.example&name=x": "dot://192.0.2.1:853?name=x&verify=d.example&blockedif=empty&search=a.example,b.example&search-only&link-local",
		"dns://192.0.2.1?search=" + manyNames(100): "dns://192.0.2.1:53?search=" + manyNames(100),
	} {
		r, err := ParseResolver(text)
		if err != nil || r.String() != want {
			t.Errorf("%s: got %v, %v; want %s", text, r, err, want)
			continue
		}
		if again, err := ParseResolver(r.String()); err != nil || again != r {
			t.Errorf("%s does not read back: %v, %v", r, again, err)
		}
		if message, suggestion := CheckResolver(text); message != "" || suggestion != "" {
			t.Errorf("%s: %q, %q", text, message, suggestion)
		}
	}
}

// TestDocumentedResolvers: every URL of the documentation is right, and every scheme and parameter
// is in it.
func TestDocumentedResolvers(t *testing.T) {
	b, err := os.ReadFile("../docs/resolvers.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	list := regexp.MustCompile("`([a-z0-9]+://[^` ]+)`").FindAllStringSubmatch(text, -1)
	list = append(list, regexp.MustCompile(`(?m)^    (\S+)$`).FindAllStringSubmatch(text, -1)...)
	checked := 0
	for _, m := range list {
		if m[1] == "dns://" || strings.HasPrefix(m[1], "scheme://") {
			continue
		}
		checked++
		if message, _ := CheckResolver(m[1]); message != "" {
			t.Errorf("%s: %s", m[1], message)
		}
	}
	if checked < 10 {
		t.Errorf("only %d URLs were found", checked)
	}
	for _, word := range []string{"dns", "tcp", "dot", "tls", "https", "doh", "h3", "doq", "quic", "verify=NAME", "ip=ADDRESS", "name=TEXT", "blockedif=FORM", "search=NAME,NAME", "search-only", "link-local", "zeroip", "empty", "refused", "disabled"} {
		if !strings.Contains(text, "`"+word+"`") {
			t.Errorf("%s is not documented", word)
		}
	}
}

func manyNames(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("n%03d.example", i)
	}
	return strings.Join(list, ",")
}

// TestCheckResolver: what it does not allow, with the whole message.
func TestCheckResolver(t *testing.T) {
	const (
		needsAddress = `dns:// needs an address as host, got "example.com": want an IP address, because a name could not be resolved before there is a resolver`
		needsVerify  = "want verify=NAME, the name in the server's certificate, because the host is an address"
		needsIP      = "want ip=ADDRESS: dns.example could not be resolved before there is a resolver"
		schemes      = "; want dns, tcp, dot (or tls), https (or doh), doq (or quic) or h3"
	)
	for _, c := range []struct{ text, message, suggestion string }{
		{"", "want a resolver such as 192.0.2.53 or dot://192.0.2.53?verify=dns.example, got nothing", ""},
		{"example.com", needsAddress, ""},
		{"dns://example.com:53", needsAddress, ""},
		{"tcp://dns.example?ip=192.0.2.1", `tcp:// needs an address as host, got "dns.example": want an IP address, because a name could not be resolved before there is a resolver`, ""},
		{"ftp://192.0.2.1", `unknown scheme "ftp"` + schemes, ""},
		{"://192.0.2.1", `unknown scheme ""` + schemes, ""},
		{"udp://192.0.2.1", "unknown scheme udp://; dns:// asks over UDP", "dns://192.0.2.1"},
		{"http://dns.example/q?ip=192.0.2.1", "unknown scheme http://; DNS over HTTP is encrypted always", "https://dns.example/q?ip=192.0.2.1"},
		{"sdns://AgcAAA", "sdns:// (a DNSCrypt stamp) is not supported; want dns, tcp, dot, https, doq or h3", ""},
		{"dns://", "the host is missing: want dns://HOST", ""},
		{"dot:///?verify=a.example", "the host is missing: want dot://HOST", ""},
		{"dns://me:pw@192.0.2.1", `a resolver takes no user and no password; remove "me:pw@"`, ""},
		{"192.0.2.1:0", `want a port from 1 to 65535, got ":0"`, ""},
		{"192.0.2.1:65536", `want a port from 1 to 65535, got ":65536"`, ""},
		{"192.0.2.1:x", `want a port from 1 to 65535, got ":x"`, ""},
		{"192.0.2.1:", `want a port from 1 to 65535, got ":"`, ""},
		{"192.0.2.1:+53", `want a port from 1 to 65535, got ":+53"`, ""},
		{"[2001:db8::1", `want an IPv6 address between [ and ], got "[2001:db8::1"`, ""},
		{"[192.0.2.1]:53", `want an IPv6 address between [ and ], got "[192.0.2.1]:53"`, ""},
		{"[2001:db8::1]53", `want a port from 1 to 65535, got "53"`, ""},
		{"0.0.0.0", "0.0.0.0 is not the address of a nameserver", ""},
		{"::", ":: is not the address of a nameserver", ""},
		{"224.0.0.251", "224.0.0.251 is not the address of a nameserver", ""},
		{"ff02::fb", "ff02::fb is not the address of a nameserver", ""},
		{"255.255.255.255", "255.255.255.255 is not the address of a nameserver", ""},
		{"fe80::1%e(0", `"e(0" is not the name of an interface`, ""},
		{"192.0.2.1/24", "an address alone takes neither path nor parameters", "dns://192.0.2.1/24"},
		{"192.0.2.1?name=x", "an address alone takes neither path nor parameters", "dns://192.0.2.1?name=x"},
		{"dns://192.0.2.1/path", `dns:// has no path; remove "/path"`, ""},
		{"dot://192.0.2.1/path?verify=a.example", `dot:// has no path; remove "/path"`, ""},
		{"dns:// 192.0.2.1", "there is a space or a control character in it; in a parameter write %20", ""},
		{"dns://192.0.2.1\n", "there is a space or a control character in it; in a parameter write %20", ""},
		{"dns://192.0.2.1#x", `a resolver has no fragment; remove "#x"`, ""},
		{"dns://192.0.2.1\xff", "want at most 32768 bytes of UTF-8", ""},
		{"dns://192.0.2.1?name=" + strings.Repeat("x", 1<<15), "want at most 32768 bytes of UTF-8", ""},

		{"dns://192.0.2.1?verify=a.example", "dns:// is not encrypted, so there is nothing to verify; remove verify", ""},
		{"tcp://192.0.2.1?verify=a.example", "tcp:// is not encrypted, so there is nothing to verify; remove verify", ""},
		{"dns://192.0.2.1?ip=192.0.2.1", "the host is an address already; remove ip", ""},
		{"dot://192.0.2.1?verify=a.example&ip=192.0.2.1", "the host is an address already; remove ip", ""},
		{"dot://192.0.2.1", needsVerify, ""},
		{"https://192.0.2.1/dns-query", needsVerify, ""},
		{"doq://[2001:db8::1]:853", needsVerify, ""},
		{"h3://192.0.2.1", needsVerify, ""},
		{"dot://dns.example", needsIP, ""},
		{"https://dns.example/dns-query", needsIP, ""},
		{"doq://dns.example", needsIP, ""},
		{"h3://dns.example", needsIP, ""},
		{"dot://dns.example?verify=a.example", "the certificate is checked for the host dns.example; remove verify", ""},
		{"https://dns.example?verify=dns.example&ip=192.0.2.1", "the certificate is checked for the host dns.example; remove verify", ""},
		{"dot://dns.example?ip=x", `ip: want an IP address, got "x"`, ""},
		{"dot://dns.example?ip=192.0.2.1:853", `ip: want an address without a port, got "192.0.2.1:853": the port stands behind the host`, ""},
		{"dot://dns.example?ip=0.0.0.0", "ip: 0.0.0.0 is not the address of a nameserver", ""},
		{"dot://dns.example?ip=", "ip has no value: give it one or leave it out", ""},
		{"dot://dns.example?ip", "ip has no value: give it one or leave it out", ""},
		{"dot://192.0.2.1.5?ip=192.0.2.1", `"192.0.2.1.5" is neither an IP address nor a name`, ""},
		{"dot://dns..example?ip=192.0.2.1", `"dns..example" is no name of a host: want letters, digits and hyphens between dots`, ""},
		{"dot://-dns.example?ip=192.0.2.1", `"-dns.example" is no name of a host: want letters, digits and hyphens between dots`, ""},
		{"dot://höhle.example?ip=192.0.2.1", `write "höhle.example" in its ASCII form`, "xn--hhle-5qa.example"},
		{"dot://" + strings.Repeat("a.", 127) + "aa?ip=192.0.2.1", `"` + (strings.Repeat("a.", 127) + "aa")[:200] + `…" is no name: it has more than 253 characters`, ""},
		{"dot://192.0.2.1?verify=a b", "there is a space or a control character in it; in a parameter write %20", ""},
		{"dot://192.0.2.1?verify=a%20b", `verify: "a b" is no name of a host: want letters, digits and hyphens between dots`, ""},
		{"dot://192.0.2.1?verify=192.0.2", `verify: "192.0.2" is neither an IP address nor a name`, ""},
		{"https://dns.example/dns-query{?dns}", "the template's {?dns} is left out: queries are sent by POST", "https://dns.example/dns-query"},
		{"https://dns.example/a|b?ip=192.0.2.1", "\"/a|b\" is no path of a URL: write other characters than letters, digits and -._~!$&'()*+,;=:@/ as %XX", ""},

		{"dns://192.0.2.1?color=red", `unknown parameter "color"; want name, verify, ip, blockedif, search, search-only or link-local`, ""},
		{"dns://192.0.2.1?Name=x", `unknown parameter "Name"; want name, verify, ip, blockedif, search, search-only or link-local`, ""},
		{"dns://192.0.2.1?=x", `unknown parameter ""; want name, verify, ip, blockedif, search, search-only or link-local`, ""},
		{"dns://192.0.2.1?name=a&name=b", "name is given twice", ""},
		{"dns://192.0.2.1?link-local&link-local", "link-local is given twice", ""},
		{"dns://192.0.2.1?name=a&", "there is nothing between two &, or behind the last; remove the &", ""},
		{"dns://192.0.2.1?&name=a", "there is nothing between two &, or behind the last; remove the &", ""},
		{"dns://192.0.2.1?name=%zz", `name: "%zz" is not escaped as in a URL: want %XX`, ""},
		{"dns://192.0.2.1?name=%ff", `name: "%ff" is not escaped as in a URL: want %XX`, ""},
		{"dns://192.0.2.1?name=%00", "name: want at most 64 printable characters", ""},
		{"dns://192.0.2.1?name=" + strings.Repeat("x", 65), "name: want at most 64 printable characters", ""},
		{"dns://192.0.2.1?blockedif=nxdomain", `blockedif: want zeroip, empty, refused or disabled, got "nxdomain"`, ""},
		{"dns://192.0.2.1?link-local=yes", "link-local takes no value: write link-local alone", ""},
		{"dns://192.0.2.1?search=a.example&search-only=", "search-only takes no value: write search-only alone", ""},
		{"dns://192.0.2.1?search-only", "search-only without search: the resolver would never be asked; add search=NAME", ""},
		{"dns://192.0.2.1?search=", "search has no value: give it one or leave it out", ""},
		{"dns://192.0.2.1?search=a.example,", `search: "" is no name of a host: want letters, digits and hyphens between dots`, ""},
		{"dns://192.0.2.1?search=*.example", `search: "*.example" is no name of a host: want letters, digits and hyphens between dots`, ""},
		{"dns://192.0.2.1?search=" + manyNames(101), "search: want at most 100 names, got 101", ""},
		{"dns://192.0.2.1?search=com", `search: everyone can register names below "com"; want a name below it, such as example.com`, ""},
		{"dns://192.0.2.1?search=ok.example,CO.UK.", `search: everyone can register names below "co.uk"; want a name below it, such as example.co.uk`, ""},
		{"dns://192.0.2.1?search=github.io", `search: everyone can register names below "github.io"; want a name below it, such as example.github.io`, ""},
		{"dns://192.0.2.1?search=in-addr.arpa", `search: everyone can register names below "in-addr.arpa"; want a name below it, such as example.in-addr.arpa`, ""},
		{"dns://192.0.2.1?search=.", `search: "" is no name of a host: want letters, digits and hyphens between dots`, ""},
	} {
		message, suggestion := CheckResolver(c.text)
		if message != c.message || suggestion != c.suggestion {
			t.Errorf("%s:\n got %s | %s\nwant %s | %s", shorten(c.text), message, suggestion, c.message, c.suggestion)
		}
		r, err := ParseResolver(c.text)
		if err == nil || r != (Resolver{}) || !strings.Contains(err.Error(), c.message) || !strings.Contains(err.Error(), c.suggestion) {
			t.Errorf("%s: got %v, %v", shorten(c.text), r, err)
		}
	}
}

// FuzzResolverURL: what is read is written and read back as the same value; what is not has a
// reason; a resolver that may be asked has all that it takes to ask it.
func FuzzResolverURL(f *testing.F) {
	for _, s := range []string{
		"192.0.2.1", "tcp://[2001:db8::1]:53", "dns://fe80::1%25e", "dot://192.0.2.1?verify=a.example", "https://dns.example/q?ip=192.0.2.1&name=a+b",
		"h3://dns.example?ip=fe80::1%25e", "doq://192.0.2.1?verify=d.example&search=b.example,a.example&search-only&link-local&blockedif=refused",
		"dns://192.0.2.1?search=co.uk", "https://dns.example/dns-query{?dns}", "dot://x?verify=y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		message, _ := CheckResolver(text)
		r, err := ParseResolver(text)
		if (err == nil) != (message == "") {
			t.Fatalf("%q: %v, but the check says %q", text, err, message)
		}
		if err != nil {
			return
		}
		if again, err := ParseResolver(r.String()); err != nil || again != r {
			t.Fatalf("%q reads as %v, which reads as %v, %v", text, r, again, err)
		}
		switch {
		case !r.Addr.IsValid() || r.Addr.Port() == 0:
			t.Fatalf("%q cannot be dialled: %v", text, r.Addr)
		case r.Encrypted() != (r.certificateName() != "") || r.Scheme.http() != (r.Path != ""):
			t.Fatalf("%q: %+v", text, r)
		case r.Label() == "":
			t.Fatalf("%q has no name", text)
		case r.SearchOnly && r.Search == "" || len(r.SearchDomains()) > maxSearch:
			t.Fatalf("%q: %+v", text, r)
		}
	})
}
