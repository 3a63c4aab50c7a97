package encrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"golang.org/x/crypto/nacl/secretbox"
)

var (
	errShort  = errors.New("the stored data was shorter than the required size")
	errForged = errors.New("the key does not fit, or the data was changed")
)

// identity stores values as they are.
var identity = transformer{
	seal: func(plain []byte, _ string) ([]byte, error) { return plain, nil },
	open: func(sealed []byte, _ string) ([]byte, error) { return sealed, nil },
}

// nonce gives n random bytes in a slice with room for more.
func nonce(n, room int) []byte {
	b := make([]byte, n, n+room)
	_, _ = rand.Read(b) // never fails
	return b
}

// gcm is AES-GCM with a random nonce in front and the storage path as additional data.
func gcm(b cipher.Block) transformer {
	aead, err := cipher.NewGCM(b)
	if err != nil {
		panic(err) // AES has the right block size
	}
	size := aead.NonceSize()
	return transformer{
		seal: func(plain []byte, path string) ([]byte, error) {
			out := nonce(size, len(plain)+aead.Overhead())
			return aead.Seal(out, out, plain, []byte(path)), nil
		},
		open: func(sealed []byte, path string) ([]byte, error) {
			if len(sealed) < size {
				return nil, errShort
			}
			plain, err := aead.Open(nil, sealed[:size], sealed[size:], []byte(path))
			if err != nil {
				return nil, errForged
			}
			return plain, nil
		},
	}
}

// cbc is AES-CBC with a random vector in front and PKCS#7 padding. It does not tell whether data was changed.
func cbc(b cipher.Block) transformer {
	return transformer{
		seal: func(plain []byte, _ string) ([]byte, error) {
			pad := aes.BlockSize - len(plain)%aes.BlockSize
			out := nonce(aes.BlockSize, len(plain)+pad)
			out = append(append(out, plain...), bytes.Repeat([]byte{byte(pad)}, pad)...)
			cipher.NewCBCEncrypter(b, out[:aes.BlockSize]).CryptBlocks(out[aes.BlockSize:], out[aes.BlockSize:])
			return out, nil
		},
		open: func(sealed []byte, _ string) ([]byte, error) {
			if len(sealed) < 2*aes.BlockSize || len(sealed)%aes.BlockSize != 0 {
				return nil, errShort
			}
			plain := make([]byte, len(sealed)-aes.BlockSize)
			cipher.NewCBCDecrypter(b, sealed[:aes.BlockSize]).CryptBlocks(plain, sealed[aes.BlockSize:])
			pad := int(plain[len(plain)-1])
			if pad == 0 || pad > aes.BlockSize || !bytes.Equal(plain[len(plain)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
				return nil, errForged
			}
			return plain[:len(plain)-pad], nil
		},
	}
}

// box is XSalsa20 and Poly1305 with a random nonce in front.
func box(key [32]byte) transformer {
	const size = 24
	return transformer{
		seal: func(plain []byte, _ string) ([]byte, error) {
			out := nonce(size, len(plain)+secretbox.Overhead)
			return secretbox.Seal(out, plain, (*[size]byte)(out), &key), nil
		},
		open: func(sealed []byte, _ string) ([]byte, error) {
			if len(sealed) < size {
				return nil, errShort
			}
			plain, ok := secretbox.Open(nil, sealed[size:], (*[size]byte)(sealed), &key)
			if !ok {
				return nil, errForged
			}
			return plain, nil
		},
	}
}
