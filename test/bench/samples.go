//go:build linux

package main

import (
	"debug/buildinfo"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// sampleFile takes every raw figure; the zero file takes none.
type sampleFile struct {
	file   *os.File
	writer *csv.Writer
}

// newSampleFile creates path, or a sampleFile that drops everything if path is
// empty.
func newSampleFile(path string) (*sampleFile, error) {
	if path == "" {
		return &sampleFile{}, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	s := &sampleFile{file: file, writer: csv.NewWriter(file)}
	return s, s.writer.Write([]string{"block", "contender", "metric", "sample", "value"})
}

// write adds figures; an error shows up in close.
func (s *sampleFile) write(block, contender, metric string, values []float64) {
	if s.writer == nil {
		return
	}
	for i, value := range values {
		_ = s.writer.Write([]string{block, contender, metric, strconv.Itoa(i), strconv.FormatFloat(value, 'g', 6, 64)})
	}
}

func (s *sampleFile) close() error {
	if s.writer == nil {
		return nil
	}
	s.writer.Flush()
	if err := errors.Join(s.writer.Error(), s.file.Close()); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	return nil
}

// moduleVersion returns the version of the module that a program was built
// from, as the Go tool noted it: the main module's, or that of wanted where a
// wrapper module built it.
func moduleVersion(path, wanted string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "of unknown version"
	}
	for _, module := range info.Deps {
		if module.Path == wanted {
			return module.Version + " by " + info.GoVersion
		}
	}
	return info.Main.Version + " by " + info.GoVersion
}
