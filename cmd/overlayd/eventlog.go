package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
)

// eventSink takes log entries by their level: Windows' event log, which shows
// them by it, gives each a time of its own and bounds what it keeps.
type eventSink interface {
	Info(id uint32, text string) error
	Warning(id uint32, text string) error
	Error(id uint32, text string) error
}

const (
	// eventID is that of all entries: their words say what they are. The message
	// file of EventCreate.exe, by which they are shown, knows 1 to 1000.
	eventID = 1
	// longestEvent is what ReportEvent takes of a text, in characters; the
	// handler cuts by bytes, of which there are never fewer.
	longestEvent = 31839
)

// eventHandler writes each record as one entry, without the line's end.
type eventHandler struct {
	sink   eventSink
	format slog.Handler // writes to line
	mu     *sync.Mutex  // guards line; shared, as line is
	line   *bytes.Buffer
}

// newEventHandler returns a handler whose entries look as format has them.
func newEventHandler(sink eventSink, format func(io.Writer) slog.Handler) slog.Handler {
	line := &bytes.Buffer{}
	return &eventHandler{sink: sink, format: format(line), mu: &sync.Mutex{}, line: line}
}

func (h *eventHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.format.Enabled(ctx, level)
}

func (h *eventHandler) Handle(ctx context.Context, record slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.line.Reset()
	if err := h.format.Handle(ctx, record); err != nil {
		return err
	}
	text := eventText(h.line.Bytes())
	switch {
	case record.Level >= slog.LevelError:
		return h.sink.Error(eventID, text)
	case record.Level >= slog.LevelWarn:
		return h.sink.Warning(eventID, text)
	}
	return h.sink.Info(eventID, text)
}

// eventText is what of a line the event log takes: whole up to its limit, and
// without NULs, at which texts end there.
func eventText(line []byte) string {
	line = bytes.ReplaceAll(bytes.TrimRight(line, "\n"), []byte{0}, nil)
	return string(bytes.ToValidUTF8(line[:min(len(line), longestEvent)], nil))
}

func (h *eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.format = h.format.WithAttrs(attrs)
	return &with
}

func (h *eventHandler) WithGroup(name string) slog.Handler {
	with := *h
	with.format = h.format.WithGroup(name)
	return &with
}
