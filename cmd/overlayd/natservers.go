package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/zlayer/zlayer-cni/pkg/shim"
)

// serverText writes an entry of a list of servers as its flag would be: a text is
// an address, and keys with values are KEY=VALUE, separated by semicolons.
func serverText(item any) (string, error) {
	tree, ok := item.(map[string]any)
	if !ok {
		return asText(item)
	}
	var parts []string
	for _, key := range sortedKeys(tree) {
		if strings.ContainsAny(key, ";=") {
			return "", fmt.Errorf("unknown key %q", key)
		}
		value, err := asText(tree[key])
		if err == nil && strings.Contains(value, ";") {
			err = errors.New("it holds a semicolon")
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
		parts = append(parts, key+"="+value)
	}
	if len(parts) == 0 {
		return "", errors.New("address: not set")
	}
	return strings.Join(parts, ";"), nil
}

// serverTexts returns the entries of a file's list of servers.
func serverTexts(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("want a list, got %s", kindOf(value))
	}
	texts := make([]string, len(list))
	for i, item := range list {
		text, err := serverText(item)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		texts[i] = text
	}
	return texts, nil
}

// parseServer reads what serverText writes into the fields, and wants an
// address.
func parseServer(text string, fields map[string]*string) error {
	if !strings.Contains(text, "=") {
		text = "address=" + text
	}
	given := map[string]bool{}
	for part := range strings.SplitSeq(text, ";") {
		key, value, _ := strings.Cut(part, "=")
		field, known := fields[key]
		switch {
		case !known:
			return fmt.Errorf("unknown key %q", key)
		case given[key]:
			return fmt.Errorf("%s: given twice", key)
		}
		*field, given[key] = value, true
	}
	if *fields["address"] == "" {
		return errors.New("address: not set")
	}
	return nil
}

func parseSTUNServers(texts []string) ([]shim.STUNServer, error) {
	parsed := make([]shim.STUNServer, len(texts))
	for i, text := range texts {
		fields := map[string]*string{"address": &parsed[i].Address, "label": &parsed[i].Label}
		if err := parseServer(text, fields); err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
	}
	return parsed, nil
}

// parseTURNServers returns the servers still without credentials, and the paths
// of the files that hold them.
func parseTURNServers(texts []string) ([]shim.TURNServer, []string, error) {
	parsed, files := make([]shim.TURNServer, len(texts)), make([]string, len(texts))
	for i, text := range texts {
		server := &parsed[i]
		fields := map[string]*string{
			"address": &server.Address, "username": &server.Username, "region": &server.Region, "credential_file": &files[i],
		}
		if err := parseServer(text, fields); err != nil {
			return nil, nil, fmt.Errorf("item %d: %w", i, err)
		}
	}
	return parsed, files, nil
}

// credentialLimit bounds a file with a credential, in bytes.
const credentialLimit = 4 << 10

// readCredentials reads the credentials of the TURN servers. An error names the
// key and the file, and nothing of what is in it.
func (c *Config) readCredentials() error {
	for i, path := range c.TURNCredentialFiles {
		if path == "" {
			continue
		}
		data, err := readBounded(path, credentialLimit)
		secret := strings.TrimSpace(string(data))
		if err == nil && secret == "" {
			err = fmt.Errorf("%s: it is empty", path)
		}
		if err != nil {
			return fmt.Errorf("nat.turn_servers[%d].credential_file: %w", i, err)
		}
		c.NAT.TURNServers[i].Credential = shim.Secret(secret)
	}
	return nil
}
