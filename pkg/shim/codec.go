package shim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// headerLen is the length of a frame's length.
const headerLen = 4

// errTooLarge tells that a frame is beyond MaxFrame.
var errTooLarge = errors.New("frame too large")

// envelope is any frame, its content still to be read.
type envelope struct {
	Frame    string          `json:"frame"`
	ID       uint64          `json:"id"`
	Request  json.RawMessage `json:"request"`
	Response json.RawMessage `json:"response"`
	Event    string          `json:"event"`
}

// The tags of envelope.Frame.
const (
	frameRequest  = "request"
	frameResponse = "response"
	frameEvent    = "event"
)

// encode is json.Marshal without its escapes for HTML, which serde does not
// write either.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// tagged encodes v, which must become an object, with the tag as its first
// field: the order in which serde writes.
func tagged(key, tag string, v any) ([]byte, error) {
	body, err := encode(v)
	if err != nil {
		return nil, err
	}
	if len(body) < 2 || body[0] != '{' {
		return nil, fmt.Errorf("encode %s: no object", tag)
	}
	out := make([]byte, 0, len(key)+len(tag)+len(body)+8)
	out = append(out, '{', '"')
	out = append(out, key...)
	out = append(out, '"', ':')
	out = strconv.AppendQuote(out, tag)
	if len(body) > 2 {
		out = append(out, ',')
	}
	return append(out, body[1:]...), nil
}

// encodeRequest returns the frame of req, length included.
func encodeRequest(id uint64, req Request) ([]byte, error) {
	body, err := tagged("op", req.Op(), req)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", req.Op(), err)
	}
	return numbered(frameRequest, id, body)
}

// encodeResponse returns the frame of resp, length included.
func encodeResponse(id uint64, resp Response) ([]byte, error) {
	body, err := tagged("result", resp.Result(), resp)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", resp.Result(), err)
	}
	return numbered(frameResponse, id, body)
}

// encodeEvent returns the frame of event, length included.
func encodeEvent(event Event) ([]byte, error) {
	body, err := tagged("event", event.Event(), event)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", event.Event(), err)
	}
	frame := append(make([]byte, headerLen, headerLen+len(body)+32), `{"frame":"event",`...)
	return finish(append(frame, body[1:]...))
}

// numbered wraps a request or response, whose field is called like the frame.
func numbered(frame string, id uint64, body []byte) ([]byte, error) {
	out := make([]byte, headerLen, headerLen+len(body)+64)
	out = append(out, `{"frame":"`...)
	out = append(out, frame...)
	out = append(out, `","id":`...)
	out = strconv.AppendUint(out, id, 10)
	out = append(out, `,"`...)
	out = append(out, frame...)
	out = append(out, `":`...)
	out = append(out, body...)
	return finish(append(out, '}'))
}

// finish writes the length into the space left for it.
func finish(frame []byte) ([]byte, error) {
	length := len(frame) - headerLen
	if length > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, length, MaxFrame)
	}
	binary.LittleEndian.PutUint32(frame, uint32(length))
	return frame, nil
}

// bodyLen reads a frame's length and refuses one beyond MaxFrame, before
// anything is allocated for it.
func bodyLen(header []byte) (int, error) {
	length := binary.LittleEndian.Uint32(header)
	if length > MaxFrame {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, length, MaxFrame)
	}
	return int(length), nil
}

// readBody reads a frame's document. Memory follows what has arrived, not what
// was announced. An early end is io.ErrUnexpectedEOF.
func readBody(r io.Reader, length int) ([]byte, error) {
	const firstChunk = 64 << 10
	body := make([]byte, 0, min(length, firstChunk))
	for len(body) < length {
		if len(body) == cap(body) {
			grown := make([]byte, len(body), min(length, 4*cap(body)))
			copy(grown, body)
			body = grown
		}
		n, err := io.ReadFull(r, body[len(body):cap(body)])
		body = body[:len(body)+n]
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return body, nil
}

// readFrame reads one frame from where namespaces do not ride. A peer that
// closed between two frames is io.EOF.
func readFrame(r io.Reader) (envelope, error) {
	var header [headerLen]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return envelope{}, err
	}
	length, err := bodyLen(header[:])
	if err != nil {
		return envelope{}, err
	}
	body, err := readBody(r, length)
	if err != nil {
		return envelope{}, err
	}
	return decodeEnvelope(body)
}

// decodeEnvelope reads the outer layer of a document.
func decodeEnvelope(body []byte) (envelope, error) {
	var env envelope
	if err := json.Unmarshal(body, &env); err != nil {
		return envelope{}, fmt.Errorf("decode frame: %w", err)
	}
	if env.Frame == frameEvent {
		env.Response = body // an event's fields lie beside its tags
	}
	return env, nil
}

// unknownOpError tells that a request is well-formed but of no operation here.
type unknownOpError struct{ op string }

func (e unknownOpError) Error() string { return "unknown operation " + short(e.op) }

// decodeRequest reads a request of any operation.
func decodeRequest(raw json.RawMessage) (Request, error) {
	var tag struct {
		Op *string `json:"op"`
	}
	if err := json.Unmarshal(raw, &tag); err != nil {
		return nil, fmt.Errorf("decode request: %w", err)
	}
	if tag.Op == nil {
		return nil, errors.New("decode request: no operation")
	}
	req := newRequest(*tag.Op)
	if req == nil {
		return nil, unknownOpError{*tag.Op}
	}
	if err := json.Unmarshal(raw, req); err != nil {
		return nil, fmt.Errorf("decode %s: %w", req.Op(), err)
	}
	return req, nil
}

// decodeResponse reads a response of any kind.
func decodeResponse(raw json.RawMessage) (Response, error) {
	var tag struct {
		Result string `json:"result"`
	}
	if err := json.Unmarshal(raw, &tag); err != nil {
		return nil, fmt.Errorf("decode response: %w", err)
	}
	resp := newResponse(tag.Result)
	if resp == nil {
		return nil, errors.New("decode response: unknown result " + short(tag.Result))
	}
	if err := json.Unmarshal(raw, resp); err != nil {
		return nil, fmt.Errorf("decode %s: %w", resp.Result(), err)
	}
	if failure, ok := resp.(*Error); ok && failure.Code == "" {
		failure.Code = CodeInternal
	}
	return resp, nil
}

// decodeEvent reads the event of an envelope, or nil if it is of no kind known
// here.
func decodeEvent(env envelope) (Event, error) {
	event := newEvent(env.Event)
	if event == nil {
		return nil, nil
	}
	if err := json.Unmarshal(env.Response, event); err != nil {
		return nil, fmt.Errorf("decode %s: %w", event.Event(), err)
	}
	return event, nil
}
