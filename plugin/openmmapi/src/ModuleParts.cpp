#include "internal/ModuleParts.h"
#include "openmm/OpenMMException.h"
#include <c10/util/Half.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <utility>

using namespace ScoreDynamicsPlugin;
using OpenMM::OpenMMException;

namespace {

std::optional<std::string> contentsOf(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file)
        return std::nullopt;
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

/** Where a model's file may be. */
std::vector<std::string> placesOf(const std::string& file) {
    std::vector<std::string> places{file};
    const char* folders = std::getenv("OPENMM_SD_MODELS");
    std::istringstream stream(folders == nullptr ? "" : folders);
    const std::string name = file.substr(file.find_last_of('/') + 1);
    for (std::string folder; std::getline(stream, folder, ':');)
        if (!folder.empty())
            places.push_back(folder + "/" + name);
    return places;
}

std::string widened(const std::string& halves) {
    std::string floats(2 * halves.size(), '\0');
    for (std::size_t i = 0; i + 1 < halves.size(); i += 2) {
        std::uint16_t bits;
        std::memcpy(&bits, &halves[i], 2);
        const float number = c10::Half(bits, c10::Half::from_bits());
        std::memcpy(&floats[2 * i], &number, 4);
    }
    return floats;
}

/** The parts in a row; nothing if the contents are too short for them. */
std::optional<std::string> joined(const std::vector<ModulePart>& parts, const std::string& contents) {
    std::string module;
    for (const ModulePart& part : parts) {
        if (!part.bytes.empty()) {
            module += part.bytes;
            continue;
        }
        const auto size = static_cast<long long>(contents.size());
        if (part.offset < 0 || part.length < 0 || part.offset > size || part.length > size - part.offset)
            return std::nullopt;
        const std::string stretch = contents.substr(part.offset, part.length);
        module += part.widened ? widened(stretch) : stretch;
    }
    return module;
}

// Modules that some force of this process holds, by digest: copies share them, and need no file.
std::mutex lock;
std::map<std::string, std::weak_ptr<const std::string>> known;

} // namespace

ModuleParts::ModuleParts(std::string module)
    : module(std::make_shared<const std::string>(std::move(module))) {
}

ModuleParts::ModuleParts(std::string file, std::string digest, std::vector<ModulePart> parts)
    : file(std::move(file)), digest(std::move(digest)), parts(std::move(parts)) {
    const std::lock_guard<std::mutex> guard(lock);
    module = known[this->digest].lock();
    if (module)
        return;
    std::string other;
    for (const std::string& place : placesOf(this->file)) {
        const auto contents = contentsOf(place);
        if (!contents)
            continue;
        auto found = joined(this->parts, *contents);
        if (found && sha256(*found) == this->digest) {
            module = std::make_shared<const std::string>(std::move(*found));
            known[this->digest] = module;
            return;
        }
        if (other.empty())
            other = place;
    }
    if (!other.empty())
        throw OpenMMException("openmm-sd: " + other +
                              " is not the model's file that this System was made with");
    throw OpenMMException("openmm-sd: this System needs the model's file " + this->file +
                          ", which is not there; OPENMM_SD_MODELS can name its folder");
}

std::string ScoreDynamicsPlugin::sha256(const std::string& bytes) {
    static const std::uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::uint32_t sums[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    // What is behind the last whole block of 64 bytes, a bit that is set, and the length in bits.
    std::string tail = bytes.substr(bytes.size() / 64 * 64) + '\x80';
    tail.resize(tail.size() <= 56 ? 56 : 120, '\0');
    for (int shift = 56; shift >= 0; shift -= 8)
        tail += static_cast<char>(static_cast<std::uint64_t>(bytes.size()) * 8 >> shift);
    const auto turned = [](std::uint32_t word, int by) { return word >> by | word << (32 - by); };
    const auto add = [&](const char* block) {
        std::uint32_t words[64];
        for (int i = 0; i < 16; i++) {
            words[i] = 0;
            for (int k = 0; k < 4; k++)
                words[i] = words[i] << 8 | static_cast<unsigned char>(block[4 * i + k]);
        }
        for (int i = 16; i < 64; i++) {
            const std::uint32_t a = words[i - 15], b = words[i - 2];
            words[i] = words[i - 16] + words[i - 7] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) +
                       (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
        }
        std::uint32_t s[8];
        std::copy(sums, sums + 8, s);
        for (int i = 0; i < 64; i++) {
            const std::uint32_t one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
                                      ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + words[i];
            const std::uint32_t two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
                                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            std::copy_backward(s, s + 7, s + 8);
            s[4] += one;
            s[0] = one + two;
        }
        for (int i = 0; i < 8; i++)
            sums[i] += s[i];
    };
    for (std::size_t start = 0; start + 64 <= bytes.size(); start += 64)
        add(&bytes[start]);
    for (std::size_t start = 0; start < tail.size(); start += 64)
        add(&tail[start]);
    std::string text;
    for (const std::uint32_t sum : sums)
        for (int shift = 28; shift >= 0; shift -= 4)
            text += "0123456789abcdef"[sum >> shift & 15];
    return text;
}
