// The sha256 of bytes (FIPS 180-4), in 64 hexadecimal digits.
#pragma once

#include <cstdint>
#include <string>

inline std::string sha256(const std::string& content) {
    // The first bits of the fractions of the cube roots of the first 64 primes, and of the square roots of the first 8.
    static const uint32_t roots[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    auto rotated = [](uint32_t x, int bits) { return x >> bits | x << (32 - bits); };
    auto add_block = [&](const unsigned char* block) {
        uint32_t words[64] = {};
        for (int i = 0; i < 64; i++) words[i / 4] = words[i / 4] << 8 | block[i];
        for (int i = 16; i < 64; i++) {
            const uint32_t early = words[i - 15], late = words[i - 2];
            words[i] = words[i - 16] + (rotated(early, 7) ^ rotated(early, 18) ^ early >> 3) + words[i - 7] +
                       (rotated(late, 17) ^ rotated(late, 19) ^ late >> 10);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 64; i++) {
            const uint32_t mixed = (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g));
            const uint32_t one = h + mixed + roots[i] + words[i];
            const uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        const uint32_t rounds[8] = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; i++) state[i] += rounds[i];
    };

    const size_t whole = content.size() / 64 * 64;
    for (size_t at = 0; at < whole; at += 64) add_block(reinterpret_cast<const unsigned char*>(content.data()) + at);
    std::string rest = content.substr(whole) + '\x80';
    rest.resize((rest.size() + 8 + 63) / 64 * 64, '\0');
    const uint64_t bits = uint64_t{content.size()} * 8;
    for (int byte = 0; byte < 8; byte++) rest[rest.size() - 1 - byte] = static_cast<char>(bits >> (8 * byte));
    for (size_t at = 0; at < rest.size(); at += 64) add_block(reinterpret_cast<const unsigned char*>(rest.data()) + at);

    std::string digits;
    for (uint32_t word : state) {
        for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
    }
    return digits;
}
