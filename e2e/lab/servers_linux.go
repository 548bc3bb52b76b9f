package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// CAFile is the file with the lab's certificate authority: the only thing that makes the lab's
// example.org the true one (CURL_CA_BUNDLE, SSL_CERT_FILE).
func (l *Lab) CAFile() string { return filepath.Join(l.Dir, "ca.pem") }

// CertFiles are the certificate and the key of example.org and all names of the lab.
func (l *Lab) CertFiles() (cert, key string) {
	return filepath.Join(l.Dir, "cert.pem"), filepath.Join(l.Dir, "key.pem")
}

// servers starts the helper's servers on server and far, and waits until they listen.
func (l *Lab) servers() error {
	if err := l.certificates(); err != nil {
		return err
	}
	cert, key := l.CertFiles()
	tls := []string{"-cert", cert, "-key", key}
	server := append([]string{l.Bins.Peer, "serve", "-log", l.ServerLog(), "-dns", Resolver4 + "," + Resolver6,
		"-addr", strings.Join([]string{Server4, Server6, Second4, Second6}, ",")}, tls...)
	far := append([]string{l.Bins.Peer, "serve", "-log", filepath.Join(l.Dir, "far.ndjson"), "-addr", Far4 + "," + Far6}, tls...)
	for ns, command := range map[Namespace][]string{l.Server: server, l.Far: far} {
		p, err := l.Start(ns, Spec{Pipe: true}, command...)
		if err != nil {
			return err
		}
		if ns == l.Server {
			l.ServerPID = p.PID
		}
		if _, err := p.Stdout.Read(make([]byte, 64)); err != nil { // it prints a line when all is bound
			text, _ := os.ReadFile(p.Log)
			return &serverError{ns: ns, err: err, log: string(text)}
		}
	}
	return nil
}

type serverError struct {
	ns  Namespace
	err error
	log string
}

func (e *serverError) Error() string {
	return "server in " + string(e.ns) + ": " + e.err.Error() + ": " + e.log
}
func (e *serverError) Unwrap() error { return e.err }

// ServerLog is the file into which the server writes one JSON line per name asked and token
// received.
func (l *Lab) ServerLog() string { return filepath.Join(l.Dir, "server.ndjson") }

// Asked returns how often the lab's name server was asked for a name.
func (l *Lab) Asked(name string) (int, error) {
	b, err := os.ReadFile(l.ServerLog())
	if err != nil {
		return 0, err
	}
	return strings.Count(strings.ToLower(string(b)), `"asked":"`+strings.ToLower(name)+`"`), nil
}

func (l *Lab) certificates() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := certTemplate(1, "gatun lab")
	ca.IsCA, ca.BasicConstraintsValid = true, true
	ca.KeyUsage = x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := certTemplate(2, "example.org")
	leaf.DNSNames = []string{"example.org", "*.example.org", "*.example.com", "*.example.net", "far.example"}
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert, keyFile := l.CertFiles()
	for file, block := range map[string]*pem.Block{
		l.CAFile(): {Type: "CERTIFICATE", Bytes: caDER},
		cert:       {Type: "CERTIFICATE", Bytes: der},
		keyFile:    {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func certTemplate(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}
