#include "Base64.h"
#include "openmm/OpenMMException.h"
#include <array>
#include <cstdint>

namespace {

constexpr char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::array<int, 256> valuesOfDigits() {
    std::array<int, 256> values;
    values.fill(-1);
    for (int i = 0; i < 64; i++)
        values[static_cast<unsigned char>(DIGITS[i])] = i;
    return values;
}

} // namespace

std::string ScoreDynamicsPlugin::toBase64(const std::string& bytes) {
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
        std::uint32_t bits = 0;
        for (std::size_t k = 0; k < 3; k++)
            bits = bits << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0);
        for (std::size_t k = 0; k < 4; k++)
            text += k <= count ? DIGITS[bits >> (18 - 6 * k) & 63] : '=';
    }
    return text;
}

std::string ScoreDynamicsPlugin::fromBase64(const std::string& text) {
    static const std::array<int, 256> values = valuesOfDigits();
    std::size_t end = text.size();
    while (end > 0 && text.size() - end < 2 && text[end - 1] == '=')
        end--;
    if (text.size() % 4 != 0)
        throw OpenMM::OpenMMException("ScoreDynamicsForce: the module in the XML is cut short");
    std::string bytes;
    bytes.reserve(end / 4 * 3 + 2);
    std::uint32_t bits = 0;
    int pending = 0;
    for (std::size_t i = 0; i < end; i++) {
        const int value = values[static_cast<unsigned char>(text[i])];
        if (value < 0)
            throw OpenMM::OpenMMException("ScoreDynamicsForce: the module in the XML is damaged");
        bits = bits << 6 | static_cast<std::uint32_t>(value);
        pending += 6;
        if (pending >= 8) {
            pending -= 8;
            bytes += static_cast<char>(bits >> pending & 255);
        }
    }
    return bytes;
}
