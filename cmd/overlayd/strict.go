package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// errNoDocument says that a file holds nothing but white space and comments.
var errNoDocument = errors.New("the file is empty")

// readTree decodes one YAML document whose top is a mapping. A key given twice
// and a second document are errors: YAML's reader would silently drop the
// latter. Numbers stay text (json.Number). Errors are one line.
func readTree(data []byte) (map[string]any, error) {
	if err := checkOneDocument(data); err != nil {
		return nil, err
	}
	var tree any
	if err := yaml.UnmarshalStrict(data, &tree, useNumber); err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	switch top := tree.(type) {
	case nil:
		return nil, errNoDocument
	case map[string]any:
		return top, nil
	default:
		return nil, fmt.Errorf("want keys with values, got %s", kindOf(tree))
	}
}

func useNumber(d *json.Decoder) *json.Decoder {
	d.UseNumber()
	return d
}

// checkOneDocument refuses a document marker after the first line of content.
// A marker at the start of a line ends a document wherever it stands, so
// looking at lines is exact (YAML 1.1, section 9.1).
func checkOneDocument(data []byte) error {
	content := false
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, "\r\n")
		marker := isMarker(line, "---")
		if content && marker {
			return errors.New("more than one YAML document")
		}
		blank := len(bytes.TrimSpace(line)) == 0 || line[0] == '#' || line[0] == '%'
		if !marker && !blank && !isMarker(line, "...") {
			content = true
		}
	}
	return nil
}

// isMarker reports whether line is the given document marker, alone or
// followed by white space.
func isMarker(line []byte, marker string) bool {
	rest, found := bytes.CutPrefix(line, []byte(marker))
	return found && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t')
}

// yamlPreamble is what the YAML libraries put in front of the facts.
var yamlPreamble = regexp.MustCompile(`^(error converting YAML to JSON: )?(yaml: )?(unmarshal errors:\s*)?`)

// oneLine joins the lines of a YAML library's error and drops its preamble.
func oneLine(message string) string {
	message = yamlPreamble.ReplaceAllString(message, "")
	return strings.Join(strings.Fields(message), " ")
}

// kindOf names the kind of a decoded YAML value for an error.
func kindOf(value any) string {
	switch value.(type) {
	case nil:
		return "nothing"
	case string:
		return "text"
	case json.Number:
		return "a number"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	default:
		return "keys with values"
	}
}

// asText returns a text value. YAML reads an unquoted 12 or no as something
// else, so the error says what helps.
func asText(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number, bool:
		return "", fmt.Errorf("want text, got %s (put it in quotes)", kindOf(value))
	default:
		return "", fmt.Errorf("want text, got %s", kindOf(value))
	}
}

// asNumber returns a number as it is written.
func asNumber(value any) (string, error) {
	if n, ok := value.(json.Number); ok {
		return n.String(), nil
	}
	return "", fmt.Errorf("want a number, got %s", kindOf(value))
}

// asTexts returns a list of texts.
func asTexts(value any) ([]string, error) { return asList(value, asText) }

// asNumbers returns a list of numbers as they are written.
func asNumbers(value any) ([]string, error) { return asList(value, asNumber) }

func asList(value any, as func(any) (string, error)) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, fmt.Errorf("want a list, got %s", kindOf(value))
	}
	texts := make([]string, len(list))
	for i, item := range list {
		text, err := as(item)
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
		texts[i] = text
	}
	return texts, nil
}

// sortedKeys returns the keys of a decoded mapping in order, so that of several
// mistakes the same one is always told.
func sortedKeys(tree map[string]any) []string {
	keys := make([]string, 0, len(tree))
	for key := range tree {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
