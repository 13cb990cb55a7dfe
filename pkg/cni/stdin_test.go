package cni

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

func TestReadWithin(t *testing.T) {
	tests := []struct {
		name          string
		reader        func(hung io.Reader) io.Reader
		want, wantErr string
	}{
		{name: "all there is", reader: func(io.Reader) io.Reader { return strings.NewReader("1234") }, want: "1234"},
		{name: "piece by piece", reader: func(io.Reader) io.Reader { return iotest.OneByteReader(strings.NewReader("1234")) }, want: "1234"},
		{name: "too much", reader: func(io.Reader) io.Reader { return strings.NewReader("12345") }, wantErr: "more than 4 bytes"},
		{name: "far too much", reader: func(hung io.Reader) io.Reader { return io.MultiReader(strings.NewReader("12345"), hung) }, wantErr: "more than 4 bytes"},
		{name: "no end", reader: func(hung io.Reader) io.Reader { return io.MultiReader(strings.NewReader("12"), hung) }, wantErr: "no end within"},
		{name: "broken", reader: func(io.Reader) io.Reader { return iotest.ErrReader(errors.New("broken")) }, wantErr: "broken"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hung, end := io.Pipe()
				defer func() { _ = end.Close() }()
				begin := time.Now()
				got, err := readWithin(tt.reader(hung), time.Minute, 4)
				if string(got) != tt.want || (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("%q, %v, want %q, %q", got, err, tt.want, tt.wantErr)
				}
				if took := time.Since(begin); took > time.Minute {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}
