package main

import (
	"crypto/rand"
	"errors"
	"testing"
)

func TestOneHoldsTheMutex(t *testing.T) {
	name := `Global\zlayer-test-` + rand.Text()
	for range 2 {
		held, err := holdMutex(name)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := holdMutex(name); !errors.Is(err, errInCharge) {
			t.Errorf("held twice: %v, %v", second, err)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
