package main

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// eventList is an event log as text, a line for each entry.
type eventList struct{ entries []string }

func (l *eventList) add(kind string, id uint32, text string) error {
	if id != eventID {
		kind += " of another number"
	}
	l.entries = append(l.entries, kind+": "+text)
	return nil
}

func (l *eventList) Info(id uint32, text string) error    { return l.add("info", id, text) }
func (l *eventList) Warning(id uint32, text string) error { return l.add("warning", id, text) }
func (l *eventList) Error(id uint32, text string) error   { return l.add("error", id, text) }

func TestEventLog(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		want   []string
	}{
		{"text", Config{LogFormat: "text"}, []string{
			`info: level=INFO msg=starting op=run`, `warning: level=WARN msg="will try again" op=run`,
			`error: level=ERROR msg=broken op=run part.name=x`, `info: level=INFO msg=ended`,
		}},
		{"JSON, from warnings on", Config{LogFormat: "json", LogLevel: slog.LevelWarn}, []string{
			`warning: {"level":"WARN","msg":"will try again","op":"run"}`, `error: {"level":"ERROR","msg":"broken","op":"run","part":{"name":"x"}}`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events, text := &eventList{}, &strings.Builder{}
			log := newLogger(tt.config, parent{log: text, events: events})
			with := log.With("op", "run")
			with.Debug("nothing")
			with.Info("starting")
			with.Warn("will try again")
			with.WithGroup("part").Error("broken", "name", "x")
			log.Info("ended")
			for i, entry := range events.entries { // the log has a time of its own for each
				kind, rest, _ := strings.Cut(entry, "time=")
				if _, after, ok := strings.Cut(rest, " "); ok {
					entry = kind + after
				}
				if before, after, ok := strings.Cut(entry, `"time":`); ok {
					_, after, _ = strings.Cut(after, ",")
					entry = before + after
				}
				events.entries[i] = entry
			}
			if diff := cmp.Diff(tt.want, events.entries); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if text.Len() > 0 {
				t.Errorf("written beside the event log: %s", text)
			}
		})
	}
}

func TestEventText(t *testing.T) {
	for name, tt := range map[string]struct{ line, want string }{
		"a line":    {"x\n", "x"},
		"a NUL":     {"a\x00b\n", "ab"},
		"too long":  {strings.Repeat("x", longestEvent+1), strings.Repeat("x", longestEvent)},
		"cut glyph": {strings.Repeat("x", longestEvent-1) + "ä", strings.Repeat("x", longestEvent-1)},
	} {
		if got := eventText([]byte(tt.line)); got != tt.want || !utf8.ValidString(got) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(tt.want))
		}
	}
}

func TestLogOfATerminal(t *testing.T) {
	text := &strings.Builder{}
	newLogger(Config{LogFormat: "text"}, parent{out: io.Discard, log: text}).Info("starting")
	if !strings.HasSuffix(text.String(), "level=INFO msg=starting\n") {
		t.Errorf("log %q", text)
	}
}
