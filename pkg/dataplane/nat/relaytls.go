package nat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// NewRelayCertificate makes a relay's certificate from 32 secret bytes, which
// the caller derives from the node's private key: so it needs no file, and its
// fingerprint is the same after a restart. It never expires, since clients know
// it by its fingerprint alone.
func NewRelayCertificate(seed []byte) (tls.Certificate, error) {
	if len(seed) != ed25519.SeedSize {
		return tls.Certificate{}, fmt.Errorf("make a relay's certificate: seed of %d bytes, not %d", len(seed), ed25519.SeedSize)
	}
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "zlayer relay"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // "no expiry" of RFC 5280
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a relay's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// RelayFingerprint is what clients are told of a relay's certificate: the
// SHA-256 of its public key, in hexadecimal digits.
func RelayFingerprint(certificate tls.Certificate) (string, error) {
	if len(certificate.Certificate) == 0 {
		return "", errors.New("fingerprint of a relay's certificate: there is none")
	}
	parsed, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		return "", fmt.Errorf("fingerprint of a relay's certificate: %w", err)
	}
	sum := sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

// relayClientTLS returns the client's side: with a fingerprint, the relay must
// have that key and no name matters; without, it must have a certificate for
// name that the machine trusts.
func relayClientTLS(name, fingerprint string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name}
	if fingerprint == "" {
		return config, nil
	}
	want, err := hex.DecodeString(fingerprint)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("fingerprint of relay %s: not %d hexadecimal digits", name, 2*sha256.Size)
	}
	config.InsecureSkipVerify = true // VerifyConnection does it, by the key
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("relay without a certificate")
		}
		sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if !bytes.Equal(sum[:], want) {
			return fmt.Errorf("relay has key %x, not %x", sum, want)
		}
		return nil
	}
	return config, nil
}
